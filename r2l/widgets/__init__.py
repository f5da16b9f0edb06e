"""ipywidgets over functions that are tested without them."""

from r2l.widgets.adjustment import learning_explorer
from r2l.widgets.camera import camera_explorer
from r2l.widgets.forensics import landscape_explorer
from r2l.widgets.lab import lab_explorer
from r2l.widgets.matrix import matrix_explorer
from r2l.widgets.processing import processing_explorer
from r2l.widgets.raw import raw_explorer
from r2l.widgets.settings import Settings, develop_with
from r2l.widgets.upload import raw_upload, read_upload

__all__ = [
    "Settings",
    "camera_explorer",
    "develop_with",
    "lab_explorer",
    "landscape_explorer",
    "learning_explorer",
    "matrix_explorer",
    "processing_explorer",
    "raw_explorer",
    "raw_upload",
    "read_upload",
]
