"""Raw files in and out: `read_raw` and `write_dng`."""

from r2l.rawfile.dng_writer import write_dng
from r2l.rawfile.frame import RawFileError, RawFileWarning, RawFrame
from r2l.rawfile.headerless import RawLayout
from r2l.rawfile.reading import CAMERAS, load_camera, read_frame, read_raw
