"""Data sets of raw frames; `RawDataset` is what they have in common."""

from r2l.datasets.base import Item, RawDataset, Transform
from r2l.datasets.folder import RawFolder
from r2l.datasets.info import INFO, SetInfo
from r2l.datasets.layout import DatasetError, DatasetNotFoundError
from r2l.datasets.raw_drone import RawDrone
from r2l.datasets.raw_microscopy import RawMicroscopy
from r2l.datasets.synthetic import SyntheticDrone, SyntheticMicroscopy

__all__ = [
    "INFO",
    "DatasetError",
    "DatasetNotFoundError",
    "Item",
    "RawDataset",
    "RawDrone",
    "RawFolder",
    "RawMicroscopy",
    "SetInfo",
    "SyntheticDrone",
    "SyntheticMicroscopy",
    "Transform",
]
