"""A raw file of the reader's own, through the browser."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from r2l.camera import Camera
from r2l.rawfile import CAMERAS, RawFileError, RawFrame, read_raw

if TYPE_CHECKING:
    import ipywidgets

OWN_CAMERA = "the file's own"


def read_upload(name: str, content: bytes | memoryview, camera: Camera | None = None) -> RawFrame:
    """Read a raw file that came as bytes; see `r2l.rawfile.read_raw`.

    Args:
        name: what the file is called where it comes from; its ending counts.
        content: the file.
        camera: calibration to use instead of the file's own; TIFF, PNG and NPY need it.

    Raises:
        RawFileError: no usable Bayer frame; names the file as the reader knows it.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Of the name only the ending is used as a path.
        path = Path(folder, "upload" + PurePath(name).suffix)
        path.write_bytes(content)
        try:
            return read_raw(path, camera)
        except RawFileError as error:
            raise RawFileError(name, *error.args[1:]) from None


def raw_upload(receive: Callable[[str, RawFrame], None]) -> ipywidgets.Widget:
    """Return a button that takes a raw file, a menu of cameras, and a line for what is wrong.

    Servers take messages of up to 10 MB unless told otherwise: larger files are read by path.

    Args:
        receive: called with the name and the frame of each file that could be read.
    """
    import ipywidgets as widgets

    button = widgets.FileUpload(accept="", multiple=False, description="raw file")
    camera = widgets.Dropdown(
        options=[OWN_CAMERA, *CAMERAS],
        description="camera",
        tooltip="TIFF, PNG and NPY files say nothing about their camera",
    )
    note = widgets.Label("below 10 MB; name a larger one in RAW_FILE")

    def take(_change: object = None) -> None:
        for file in button.value:
            try:
                frame = read_upload(file["name"], file["content"], CAMERAS.get(camera.value))
            except RawFileError as error:
                note.value = str(error)
            else:
                note.value = f"{file['name']}: {frame.mosaic.shape[1]} x {frame.mosaic.shape[0]}"
                receive(file["name"], frame)

    for control in (button, camera):
        control.observe(take, names="value")
    return widgets.HBox([button, camera, note]).add_class("r2l-raw-upload")
