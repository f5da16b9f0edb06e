"""Data sets of raw frames; `RawDataset` is what they have in common.

The data sets themselves are imported when they are first used: who has frames in memory needs none.
"""

from importlib import import_module
from typing import Any

from r2l.datasets.base import RawDataset
from r2l.datasets.frames import Frames
from r2l.datasets.info import INFO
from r2l.datasets.layout import DatasetError, DatasetNotFoundError
from r2l.datasets.views import develop_views

_HOMES = {
    "RawDrone": "raw_drone",
    "RawFolder": "folder",
    "RawMicroscopy": "raw_microscopy",
    "SyntheticDrone": "twins.synthetic",
    "SyntheticMicroscopy": "twins.synthetic",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'r2l.datasets' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"r2l.datasets.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
