"""ipywidgets over functions that are tested without them."""

from r2l.widgets.matrix import matrix_explorer

__all__ = ["matrix_explorer"]
