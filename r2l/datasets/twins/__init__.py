"""Data sets that need no download: drawn by code, from a seed, through the published cameras."""

from r2l.datasets.twins.drone import SyntheticDrone
from r2l.datasets.twins.microscopy import SyntheticMicroscopy
