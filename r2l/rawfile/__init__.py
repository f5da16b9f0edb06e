"""Raw files in and out: `read_raw` and `write_dng`, imported when first used."""

from importlib import import_module
from typing import Any

from r2l.rawfile.frame import RawFileError, RawFileWarning, RawFrame

_HOMES = {
    "CAMERAS": "reading",
    "RawLayout": "headerless",
    "load_camera": "reading",
    "read_frame": "reading",
    "read_raw": "reading",
    "write_dng": "dng_writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'r2l.rawfile' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"r2l.rawfile.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
