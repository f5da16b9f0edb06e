"""ipywidgets over functions that are tested without them."""

from r2l.files import need_extra

need_extra("notebooks", "ipywidgets")

from r2l.widgets.camera import camera_explorer, raw_explorer
from r2l.widgets.processing import processing_explorer
from r2l.widgets.results import lab_explorer, landscape_explorer, learning_explorer, matrix_explorer
