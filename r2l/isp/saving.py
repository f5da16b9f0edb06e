"""ISPs on disk: a folder with a small JSON (what it is, and the camera) and its weights, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from r2l.camera import Camera
from r2l.isp.neural import HalfSizeRGB, NeuralISP
from r2l.isp.parametrized import ParametrizedISP
from r2l.isp.static import StaticISP
from r2l.rawfile import atomic_path

DESCRIPTION, WEIGHTS = "isp.json", "weights.safetensors"

#: Each kind of ISP, and the arguments besides the camera that make it again.
_KINDS: dict[type[nn.Module], tuple[str, ...]] = {
    StaticISP: ("demosaic", "sharpening", "denoising", "variant"),
    ParametrizedISP: ("additive_shape",),
    NeuralISP: ("encoder", "depth"),
    HalfSizeRGB: (),
}


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
    folder = Path(folder)
    try:
        isp = _make(json.loads((folder / DESCRIPTION).read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION}: no description of an ISP ({error}); save_isp writes one"
        ) from error
    try:
        isp.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{folder / WEIGHTS}: no weights for this ISP ({reason}); copy the folder again, whole"
        ) from error
    return isp


def _make(description: dict[str, Any]) -> nn.Module:
    kinds = {kind.__name__: kind for kind in _KINDS}
    if description["kind"] not in kinds:
        raise ValueError(f"unknown kind {description['kind']!r}; choose from {', '.join(kinds)}")
    kind = kinds[description["kind"]]
    if set(description["options"]) != set(_KINDS[kind]):
        raise ValueError(f"options {sorted(description['options'])}, expected {_KINDS[kind]}")
    return kind(Camera.from_dict(description["camera"]), **description["options"])
