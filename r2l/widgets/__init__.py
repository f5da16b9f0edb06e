"""ipywidgets over functions that are tested without them."""

from r2l.files import need_extra, offer_late

need_extra("notebooks", "ipywidgets")

# Those of results import all that trains, which takes seconds: not for who looks at raw data.
offer_late(
    __name__,
    {
        "r2l.widgets.camera": ["camera_explorer", "raw_explorer"],
        "r2l.widgets.processing": ["processing_explorer"],
        "r2l.widgets.results": ["lab_explorer", "landscape_explorer", "learning_explorer", "matrix_explorer"],
    },
)
