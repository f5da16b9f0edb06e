"""What explorers share: drawing while a slider moves, always the latest value, and how they look."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image

# Seconds in which the kernel may read what else has come before the next picture is drawn.
_SETTLE = 0.004
_LEAST = "640px"


class Live:
    """Calls ``draw`` when a control changes; while one picture is drawn, changes replace each other.

    A kernel handles messages one at a time. If each change of a slider drew its picture at once, a
    quick hand would leave a queue that the picture follows for seconds. Here a change only leaves
    word, and one task draws until there is none. Where no event loop runs (a plain script, a test),
    a change draws at once.

    ``draw`` reads the controls and sets the picture; where there is nobody to raise its error to, ``note``
    shows the message.
    """

    def __init__(self, draw: Callable[[], None], note: widgets.Widget) -> None:
        self.draw, self.note = draw, note
        self._wanted = self._busy = False
        # JupyterLab may deliver the changes of widgets to another thread than the cells'.
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None

    def watch(self, *controls: widgets.Widget) -> None:
        """Draw now, and when one of these changes its value."""
        for control in controls:
            control.observe(self, names="value")
        self.draw()

    def __call__(self, _change: object = None) -> None:
        """Draw the controls' values as they will be when there is time."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.draw()
            return
        with self._lock:
            self._wanted, idle = True, not self._busy
            self._busy = True
        if idle:
            # The loop itself keeps no strong reference.
            self._task = loop.create_task(self._follow())

    async def _follow(self) -> None:
        await asyncio.sleep(_SETTLE)
        while self._take():
            try:
                self.draw()
            except Exception as error:
                self.note.value = html.escape(f"{type(error).__name__}: {error}")
            await asyncio.sleep(_SETTLE)

    def _take(self) -> bool:
        with self._lock:
            self._busy, self._wanted = self._wanted, False
            return self._busy


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: a tile takes milliseconds, and threads that wait for each other more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def beside(*parts: widgets.Widget) -> widgets.HBox:
    """Return parts side by side; what does not fit on a narrow page goes below, and none is cut off."""
    for part in parts:
        part.layout.flex, part.layout.max_width = "0 0 auto", "100%"
    return widgets.HBox(parts, layout={"flex_flow": "row wrap"})


def explorer(name: str, *rows: widgets.Widget) -> widgets.Widget:
    """Return the rows of an explorer below one another; a page finds it by the class of its name."""
    return widgets.VBox(rows).add_class(f"r2l-{name}-explorer")


def sized(label: int, whole: int) -> dict[str, dict[str, str]]:
    """Return the options of a control whose label and whole are so many pixels wide."""
    return {
        "style": {"description_width": f"{label}px"},
        "layout": {"width": f"{whole}px", "max_width": "calc(100% - 4px)"},  # less its margins
    }


def whole_factor(pixels: np.ndarray, width: int) -> int:
    """Return how wide to show pixels (H, W, ...): enlarged by a whole factor, else there is moiré."""
    own = pixels.shape[1]
    return own * max(1, width // own) if own <= width else width


def picture_html(pixels: np.ndarray, alt: str, width: int) -> str:
    """Return an ``<img>`` that holds uint8 pixels (H, W) or (H, W, 3), enlarged without smoothing."""
    file = io.BytesIO()
    # Of little compression: an eighth of the time that matplotlib takes for a figure.
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    data = base64.b64encode(file.getvalue()).decode()
    height = round(width * pixels.shape[0] / pixels.shape[1])
    return (
        f'<img alt="{html.escape(alt)}" width="{width}" height="{height}" decoding="sync" '
        f'style="max-width: 100%; height: auto; '
        f'image-rendering: pixelated; display: block" src="data:image/png;base64,{data}">'
    )


def caption_html(words: Sequence[str], width: int, style: str) -> str:
    """Return words as they stand above or below a row of pictures, in columns of equal width."""
    columns = f"grid-template-columns: repeat({len(words)}, 1fr)"
    columns += f"; width: {width}px; max-width: 100%"
    spans = "".join(f"<span>{html.escape(word)}</span>" for word in words)
    return f'<div style="display: grid; {columns}; text-align: center; {style}">{spans}</div>'


def scrolled_html(content: str) -> str:
    """Return pictures that shrink to `_LEAST` pixels; on narrower pages they scroll."""
    inner = f'<div style="min-width: {_LEAST}">{content}</div>'
    return f'<div tabindex="0" style="width: 0; min-width: 100%; overflow-x: auto">{inner}</div>'
