"""Data sets of raw frames; `RawDataset` is what they have in common.

What reads them is imported when it is first used: to say what there is takes no torch.
"""

from r2l.datasets.info import INFO
from r2l.datasets.layout import DatasetError, DatasetNotFoundError
from r2l.files import offer_late

offer_late(
    __name__,
    {
        "r2l.datasets.frames": ["Frames"],
        "r2l.datasets.base": ["RawDataset"],
        "r2l.datasets.raw_drone": ["RawDrone"],
        "r2l.datasets.folder": ["RawFolder"],
        "r2l.datasets.raw_microscopy": ["RawMicroscopy"],
        "r2l.datasets.twins.synthetic": ["SyntheticDrone", "SyntheticMicroscopy"],
        "r2l.datasets.views": ["develop_views"],
    },
)
