"""Data sets that need no download: drawn by code, from a seed, through the published cameras."""

from r2l.datasets.synthetic_drone import SyntheticDrone
from r2l.datasets.synthetic_microscopy import SyntheticMicroscopy

__all__ = ["SyntheticDrone", "SyntheticMicroscopy"]
