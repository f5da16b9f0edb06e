"""Modules on disk: a folder with a small JSON (what it is, and how to make it) and its weights, no pickle."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.files import R2LError, atomic_path, choose

DESCRIPTION, WEIGHTS = "isp.json", "weights.safetensors"

#: Each kind of ISP by its name, and the arguments besides the camera that make it again.
_KINDS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {}
# Kinds in modules that are not imported with the others, by name, since few need them.
_LATE = dict.fromkeys(("HalfSizeRGB", "LearnedISP", "NeuralISP"), "r2l.isp.learned")
_LATE["Displayed"] = "r2l.isp.added_stages"
# What reading JSON and weights, and making a module of them, fails in if they are damaged.
_FAILURES = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError)
_Kind = TypeVar("_Kind", bound=type[nn.Module])


class SavedModuleError(R2LError, ValueError):
    """A folder that does not hold a whole saved module."""


def saved_with(*options: str) -> Callable[[_Kind], _Kind]:
    """Let `save_isp` and `load_isp` know a class, made of a camera and of these attributes of its own."""

    def register(kind: _Kind) -> _Kind:
        _KINDS[kind.__name__] = kind, options
        return kind

    return register


def save_isp(isp: nn.Module, folder: str | Path) -> Path:
    """Write an ISP into a folder, which is made if need be; each file whole or not at all.

    >>> import tempfile, r2l
    >>> folder = save_isp(r2l.ParametrizedISP(r2l.DRONE), tempfile.mkdtemp())
    >>> sorted(file.name for file in folder.iterdir())
    ['isp.json', 'weights.safetensors']

    Raises a ValueError for code of one's own, an OSError where the folder can't be written.
    """
    return save_module(isp, _described(isp), Path(folder) / DESCRIPTION)


def can_be_saved(isp: nn.Module) -> bool:
    """Tell whether `save_isp` takes it: not if it is code of one's own, which a folder can't hold."""
    try:
        return bool(_described(isp))
    except ValueError:
        return False


def _described(isp: nn.Module) -> dict[str, Any]:
    """Return how an ISP is made; one that is an option of another as a description in its place."""
    kind, names = _KINDS.get(type(isp).__name__, (None, ()))
    if type(isp) is not kind:
        raise ValueError(f"{type(isp).__name__} is no ISP that can be saved; those are {', '.join(_KINDS)}")
    options = {name: getattr(isp, name) for name in names}
    options = {n: _described(v) if isinstance(v, nn.Module) else v for n, v in options.items()}
    return {"kind": kind.__name__, "options": options, "camera": isp.camera.to_dict()}


def load_isp(folder: str | Path) -> nn.Module:
    """Return the ISP that `save_isp` wrote, on the CPU. Reads data only, runs no foreign code.

    >>> import tempfile, r2l
    >>> folder = save_isp(r2l.StaticISP.from_code("ma,u,me", r2l.DRONE), tempfile.mkdtemp())
    >>> load_isp(folder).sharpening
    'unsharp_masking'

    A `SavedModuleError` names the file that is missing or damaged, and what is wrong with it.
    """
    return load_module(Path(folder) / DESCRIPTION, _make, "an ISP", "save_isp writes one")


def save_module(module: nn.Module, description: Mapping[str, Any], path: Path) -> Path:
    """Write a description as JSON to ``path`` and the weights beside it; return their folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Clones: tied weights, which safetensors refuses, become equal ones.
    # What is learned in other units is kept in physical ones.
    state = getattr(module, "numbers", module.state_dict)()
    weights = {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}
    with atomic_path(path.with_name(WEIGHTS)) as partial:
        save_file(weights, partial)
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    return path.parent


def load_module(
    path: Path, make: Callable[[Any, Mapping[str, Tensor]], nn.Module], what: str, remedy: str
) -> nn.Module:
    """Return what `save_module` wrote, given the path of its description, else a `SavedModuleError`.

    ``make`` takes description and weights, both as they were found, to a module that awaits the weights;
    ``what`` the module is and the ``remedy`` where there is none are for the errors.
    """
    file, about = path.with_name(WEIGHTS), (path, f"no description of {what}", remedy)
    weighted = file, f"no weights for this {what.split()[-1]}", "Copy the folder again, whole"
    with reading(*about):
        description = json.loads(path.read_text("utf-8"))
    with reading(*weighted):
        weights = load_file(file)
    with reading(*about):
        module = make(description, weights)
    with reading(*weighted):
        module.load_state_dict(weights)
    return module


@contextmanager
def reading(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Turn what fails while a part of a saved module is read and understood into a `SavedModuleError`."""
    try:
        yield
    except (*_FAILURES, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SavedModuleError(path, f"{what} ({reason})", remedy) from error


def _make(description: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    if description["kind"] in _LATE:
        import_module(_LATE[description["kind"]])
    kind, names = choose("kind", description["kind"], _KINDS)
    options = dict(description["options"])
    for name, value in options.items():
        if isinstance(value, dict):
            start = f"{name}."
            own = {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
            options[name] = _make(value, own)
    if set(options) != set(names):
        raise ValueError(f"options {sorted(options)}, expected {names}")
    # The only option that can ask for any amount of memory: looked at before it does.
    shape, additive = options.get("additive_shape"), weights.get("additive")
    if shape is not None and (additive is None or list(shape) != list(additive.shape)):
        raise ValueError(f"additive_shape {shape}, which the weights don't have")
    return kind(Camera.from_dict(description["camera"]), **options)
