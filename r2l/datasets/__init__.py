"""Data sets of raw frames; `RawDataset` is what they have in common.

What reads them is imported when it is first used: to say what there is takes no torch.
"""

from importlib import import_module
from typing import Any

from r2l.datasets.info import INFO
from r2l.datasets.layout import DatasetError, DatasetNotFoundError

_HOMES = {
    "Frames": "frames",
    "RawDataset": "base",
    "RawDrone": "raw_drone",
    "RawFolder": "folder",
    "RawMicroscopy": "raw_microscopy",
    "SyntheticDrone": "twins.synthetic",
    "SyntheticMicroscopy": "twins.synthetic",
    "develop_views": "views",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'r2l.datasets' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"r2l.datasets.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
