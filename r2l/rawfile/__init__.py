"""Raw files in and out: `read_raw` and `write_dng`, imported when first used."""

from r2l.files import offer_late
from r2l.rawfile.frame import RawFileError, RawFileWarning, RawFrame

offer_late(
    __name__,
    {
        "r2l.rawfile.dng_tags": ["write_dng"],
        "r2l.rawfile.raster": ["RawLayout"],
        "r2l.rawfile.reading": ["CAMERAS", "load_camera", "read_frame", "read_raw"],
    },
)
