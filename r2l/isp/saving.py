"""ISPs on disk: a folder with a small JSON (what it is, and the camera) and its weights, no pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.files import atomic_path
from r2l.isp.neural import HalfSizeRGB, NeuralISP
from r2l.isp.parametrized import ParametrizedISP
from r2l.isp.static import StaticISP

DESCRIPTION, WEIGHTS = "isp.json", "weights.safetensors"

#: Each kind of ISP, and the arguments besides the camera that make it again.
_KINDS: dict[type[nn.Module], tuple[str, ...]] = {
    StaticISP: ("demosaic", "sharpening", "denoising", "variant"),
    ParametrizedISP: ("additive_shape",),
    NeuralISP: ("encoder", "depth"),
    HalfSizeRGB: (),
}
# What reading JSON and weights, and making a module of them, fails in if they are damaged.
_FAILURES = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError),
    SafetensorError,
)


def save_isp(isp: nn.Module, folder: str | Path) -> Path:
    """Write an ISP into a folder, which is made if need be; each file whole or not at all.

    Raises:
        ValueError: no ISP of `r2l.isp`.
        OSError: the folder can't be written.
    """
    if type(isp) not in _KINDS:
        kinds = ", ".join(kind.__name__ for kind in _KINDS)
        raise ValueError(f"{type(isp).__name__} is no ISP that can be saved; those are {kinds}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "kind": type(isp).__name__,
        "options": {name: getattr(isp, name) for name in _KINDS[type(isp)]},
        "camera": isp.camera.to_dict(),
    }
    weights = {name: value.detach().contiguous().cpu() for name, value in isp.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as partial:
        save_file(weights, partial)
    with atomic_path(folder / DESCRIPTION) as partial:
        partial.write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    return folder


def load_isp(folder: str | Path) -> nn.Module:
    """Return the ISP that `save_isp` wrote, on the CPU. Reads data only, runs no foreign code.

    Raises:
        ValueError: the folder does not hold a whole ISP; names the file and what is wrong with it.
    """
    place, weights_place = Path(folder) / DESCRIPTION, Path(folder) / WEIGHTS
    described = place, "no description of an ISP", "save_isp writes one"
    weighted = weights_place, "no weights for this ISP", "copy the folder again, whole"
    with reading(*described):
        description = json.loads(place.read_text("utf-8"))
    with reading(*weighted):
        weights = load_file(weights_place)
    with reading(*described):
        isp = _make(description, weights)
    with reading(*weighted):
        isp.load_state_dict(weights)
    return isp


@contextmanager
def reading(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Turn what fails while a part of a saved model is read and understood into one kind of error.

    Raises:
        ValueError: it failed; names the file, says why in a line, and what to do.
    """
    try:
        yield
    except _FAILURES as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: {what} ({reason}); {remedy}") from error


def _make(description: dict[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    kinds = {kind.__name__: kind for kind in _KINDS}
    if description["kind"] not in kinds:
        raise ValueError(f"unknown kind {description['kind']!r}; choose from {', '.join(kinds)}")
    kind, options = kinds[description["kind"]], description["options"]
    if set(options) != set(_KINDS[kind]):
        raise ValueError(f"options {sorted(options)}, expected {_KINDS[kind]}")
    # The only option that can ask for any amount of memory: looked at before it does.
    shape, additive = options.get("additive_shape"), weights.get("additive")
    if shape is not None and (additive is None or list(shape) != list(additive.shape)):
        raise ValueError(f"additive_shape {shape}, which the weights don't have")
    return kind(Camera.from_dict(description["camera"]), **options)
