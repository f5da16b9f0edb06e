"""Data sets of raw frames; `RawDataset` is what they have in common."""

from r2l.datasets.base import RawDataset
from r2l.datasets.folder import RawFolder
from r2l.datasets.frames import Frames, develop_views
from r2l.datasets.info import INFO
from r2l.datasets.layout import DatasetError, DatasetNotFoundError
from r2l.datasets.raw_drone import RawDrone
from r2l.datasets.raw_microscopy import RawMicroscopy
from r2l.datasets.twins import SyntheticDrone, SyntheticMicroscopy
