"""Data sets of raw frames; `RawDataset` is what they have in common.

What reads them is imported when it is first used: to say what there is takes no torch.
"""

from r2l.datasets.layout import INFO, DatasetError, DatasetNotFoundError
from r2l.files import offer_late

offer_late(
    __name__,
    {
        "r2l.datasets.frames": ["Frames", "develop_views"],
        "r2l.datasets.raw_drone": ["RawDrone"],
        "r2l.datasets.folder": ["RawFolder"],
        "r2l.datasets.published": ["RawMicroscopy"],
        "r2l.datasets.splits": ["RawDataset"],
        "r2l.datasets.twins.aerial_paint": ["SyntheticDrone"],
        "r2l.datasets.twins.smear": ["SyntheticMicroscopy"],
    },
)
