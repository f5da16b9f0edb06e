"""The explorers of notebooks 01 and 02: what they draw, every control at its ends, and the throttle."""

import asyncio
import base64
import io
import re
import time
from datetime import UTC, datetime

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from r2l.camera import DRONE, MICROSCOPE
from r2l.datasets import SyntheticDrone, SyntheticMicroscopy
from r2l.files import to_uint8
from r2l.isp import PIPELINES, StaticISP, open_pipeline
from r2l.isp.added_stages import clip_highlights
from r2l.rawfile import RawFrame, write_dng
from r2l.widgets import camera as looking
from r2l.widgets import processing_explorer, raw_explorer
from r2l.widgets.camera import _SIDES, _VIEWS, _Look, _upload_to, middle_tile
from r2l.widgets.live import Live, picture_html
from r2l.widgets.processing import _KNOBS, _as_seen, _clipped_shares, _strip, _turned
from tests.common import refused


@pytest.fixture(scope="module")
def frames():
    aerial = SyntheticDrone(1, seed=0, size=64)[0]["raw"][0].numpy()
    smear = SyntheticMicroscopy(1, seed=0, size=64)[0]["raw"][0].numpy()
    return {"drone": RawFrame(aerial, DRONE), "microscope": RawFrame(smear, MICROSCOPE)}


def controls(box):
    """Return an explorer's controls by their description."""
    found, todo = {}, [box]
    while todo:
        widget = todo.pop()
        todo.extend(getattr(widget, "children", ()))
        if getattr(widget, "description", ""):
            found[widget.description] = widget
    return found


def pages(box):
    """Return the HTML that an explorer shows, joined."""
    if isinstance(box, ipywidgets.HTML):
        return box.value
    return "".join(pages(child) for child in getattr(box, "children", ()))


def pictures(box):
    return re.findall(r'<img alt="([^"]*)" .*?base64,([A-Za-z0-9+/=]+)', pages(box))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def eight_bit(image):
    """A developed picture (3, H, W) as an explorer shows it, in numbers that can be subtracted."""
    return to_uint8(image.permute(1, 2, 0).numpy()).astype(int)


@pytest.mark.parametrize("code", PIPELINES)
def test_untouched_knobs_are_the_static_pipeline(frames, code):
    for frame in frames.values():
        raw = frame.tensor()
        stages = _turned(code, frame.camera).stages(raw)
        expected = StaticISP.from_code(code, frame.camera).stages(raw)
        assert list(stages) == list(expected)
        for name, image in expected.items():
            torch.testing.assert_close(stages[name], image, atol=1e-5, rtol=1e-5, msg=name)


def test_knobs_do_what_they_say(frames):
    raw, camera = frames["drone"].tensor(), DRONE

    def develop(**knobs):
        return _turned("bi,s,ga", camera, **knobs).stages(raw)

    plain = develop()
    brighter = develop(exposure=1.0)["colour_matrix"]
    torch.testing.assert_close(brighter, 2 * plain["colour_matrix"])
    grey = develop(saturation=0.0)["colour_matrix"]
    luma = torch.einsum("bchw,c->bhw", plain["colour_matrix"], torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(grey, luma[:, None].expand_as(grey), atol=1e-5, rtol=0)
    balanced = develop(red=2.0, blue=0.5)["white_balance"]
    factors = torch.tensor([2.0, 1.0, 0.5]).view(1, 3, 1, 1)
    torch.testing.assert_close(balanced, plain["white_balance"] * factors)
    torch.testing.assert_close(develop(matrix=0.0)["colour_matrix"], plain["white_balance"])
    torch.testing.assert_close(develop(sharpening=0.0)["sharpening"], plain["colour_matrix"])
    torch.testing.assert_close(develop(blur=0.0)["denoising"], plain["sharpening"])
    torch.testing.assert_close(develop(gamma=1.0)["gamma"], plain["clip"], atol=1e-6, rtol=0)
    # A camera's own black, a tenth of the range higher: what read a tenth now reads none.
    shifted = develop(black_level=10.0)["black_level"]
    torch.testing.assert_close(shifted, (plain["black_level"] - 0.1) / 0.9)


def test_a_negative_gain_is_turned_back_where_the_matrix_is_mixed_out(frames):
    raw = frames["microscope"].tensor()
    plain = _turned("bi,s,ga", MICROSCOPE, matrix=0.0).stages(raw)
    assert plain["white_balance"][:, 0].max() < 0 < plain["colour_matrix"][:, 0].min()


@pytest.mark.parametrize("name", _KNOBS)
@pytest.mark.parametrize("end", ["min", "max"])
def test_every_knob_at_its_ends_gives_a_picture(frames, name, end):
    for frame in frames.values():
        isp = _turned("bi,s,ga", frame.camera, **{name: getattr(_KNOBS[name], end)})
        assert ((image := isp(frame.tensor())) >= 0).all()  # which no NaN is
        assert (image <= 1).all()


def test_the_strip_shows_the_middle_of_every_stage():
    stages = {
        "raw": torch.full((1, 1, 40, 60), 0.25),
        "denoising": torch.full((1, 3, 40, 60), 2.0),
        "gamma": torch.zeros(1, 3, 40, 60),
    }
    stages["gamma"][..., 12:28, 22:38] = 0.25  # the middle 16 pixels
    row = _strip(stages, 16)
    assert row.shape == (16, 3 * 16 + 2 * 4, 3)
    assert (row[:, :16] == round(255 * 0.25 ** (1 / 2.2))).all()
    assert (row[:, 16:20] == 255).all()
    assert (row[:, 20:36] == 255).all()
    assert (row[:, 40:] == 64).all(), "the display image is not brightened"
    assert (_strip(stages, 16, brighten=False)[:, :16] == 64).all()
    assert _clipped_shares(stages) == (0.0, 1.0)
    assert _as_seen(stages["raw"], False).shape == (40, 60, 3)


def test_the_middle_of_a_large_frame_keeps_the_layout():
    mosaic = np.arange(30 * 42, dtype=np.float32).reshape(30, 42)
    tile = middle_tile(mosaic, 16)[0, 0].numpy()
    row, column = np.argwhere(mosaic == tile[0, 0])[0]
    assert row % 2 == column % 2 == 0
    np.testing.assert_array_equal(tile, mosaic[row : row + 16, column : column + 16])
    assert middle_tile(mosaic, 256).shape == (1, 1, 30, 42)


def ends(control):
    """Return the values of a control to try: all of a menu, both ends and the default of a slider."""
    if isinstance(control, ipywidgets.Dropdown | ipywidgets.Combobox | ipywidgets.SelectionSlider):
        options = [o[1] if isinstance(o, tuple) else o for o in control.options]
        return [*options, control.value]
    if isinstance(control, ipywidgets.Checkbox):
        return [not control.value, control.value]
    return [control.min, control.max, control.value]


def test_processing_explorer_at_every_value(frames):
    box = processing_explorer(frames)
    assert "r2l-processing-explorer" in box._dom_classes
    found = controls(box)
    assert {knob.description for knob in _KNOBS.values()} < set(found)
    for name in ("drone", "microscope"):
        found["frame"].value = name
        for label, control in found.items():
            if isinstance(control, ipywidgets.Button):
                continue
            before = pictures(box)
            seen = set()
            for value in ends(control):
                control.value = value
                (alt, large), (_, row) = pictures(box)
                assert alt.startswith(found["frame"].value)
                seen.add((large, row))
            assert len(seen) > 1, f"{label} changes the picture"
            if label != "frame":
                assert pictures(box) == before, f"{label} back at its value gives the same picture"


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("me,u,me", True),
        ("defects:0.2+ma,u,ga@camera+resize:0.5+jpeg:80", True),
        ("bi,s,me@paper", False),
        ("libraw:ahd+quantise:6", False),
    ],
)
def test_any_pipeline_of_the_grammar_can_be_typed(frames, text, turns):
    box = processing_explorer(frames)
    found = controls(box)
    found["pipeline"].value = text
    raw, isp = frames["drone"].tensor(), open_pipeline(text, DRONE)
    assert abs(pixels(pictures(box)[0][1]) - eight_bit(isp(clip_highlights(raw, DRONE))[0])).max() <= 1
    names = [name for _, name in found["picture after"].options]
    assert names == [name for name in isp.stages(raw) if name != "clip"]
    assert all(f"<span>{name.replace('_', ' ')}</span>" in pages(box) for name in names)
    assert found["gamma"].disabled is not turns
    assert found[_KNOBS["blur"].description].disabled is not ("ga" in text and turns)
    found["picture after"].value = "raw"
    assert pictures(box)[0][0] == f"drone, pipeline {text}, after raw"
    found["picture after"].value = names[-1]
    before = pictures(box)
    found["gamma"].value = 3.0
    assert (pictures(box) != before) is turns
    # Another pipeline has other stages; a mistake says so, and the picture stays.
    found["pipeline"].value = "bi,s,ga"
    assert found["picture after"].value == "gamma"
    before = pictures(box)
    found["pipeline"].value = "no,s,ga"
    assert "bi, ma, me" in pages(box)
    assert pictures(box) == before


def test_drawing_leaves_the_number_of_threads_as_it_was(frames):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        controls(processing_explorer(frames))["gamma"].value = 3.0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_reset_goes_back_to_the_camera(frames):
    box = processing_explorer(frames)
    found, before = controls(box), pictures(box)
    for knob in _KNOBS.values():
        found[knob.description].value = knob.max
    assert pictures(box) != before
    found["back to the camera's values"].click()
    assert pictures(box) == before
    refused("no frames", processing_explorer, {})
    refused("no pipelines", processing_explorer, frames, 64, [])
    refused("bi, ma, me", processing_explorer, frames, pipelines=["no,s,ga"])


def test_raw_explorer_at_every_value(frames):
    box = raw_explorer(frames)
    assert "r2l-raw-explorer" in box._dom_classes
    found = controls(box)
    for name in frames:
        found["frame"].value = name
        for label in ("show", "zoom, sites", "row", "column"):
            seen = set()
            for value in ends(found[label]):
                found[label].value = value
                seen.add(pages(box))
            assert len(seen) > 1, label
    assert "<svg" in pages(box)
    stretch = found["stretch to the range used"]
    before = pages(box)
    stretch.value = False
    assert pages(box) != before
    refused("no frames", raw_explorer, {})


def test_a_part_of_a_frame_is_painted_as_it_lies():
    mosaic = np.random.default_rng(0).random((40, 60)).astype(np.float32)
    frame = RawFrame(mosaic, DRONE)
    look = _Look(row=5, column=60, side=8, view=_VIEWS[1])
    part = mosaic[4:12, 52:60]  # odd rows would change the layout; beyond the edge there is nothing
    np.testing.assert_array_equal(looking._cut(mosaic, look), part)
    np.testing.assert_allclose(looking._paint(frame, look), part)
    for view, y, x in (("red", 0, 0), ("green 1", 0, 1), ("green 2", 1, 0), ("blue", 1, 1)):
        plane = looking._paint(frame, _Look(5, 60, 8, view))
        np.testing.assert_allclose(plane, part[y::2, x::2])
    stretched = looking._paint(frame, _Look(5, 60, 8, _VIEWS[1], (0.25, 0.75)))
    np.testing.assert_allclose(stretched, ((part - 0.25) * 2).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("shape", [(22, 22), (64, 64), (1000, 1400)])
@pytest.mark.parametrize("side", _SIDES)
def test_any_size_of_frame_can_be_looked_at(shape, side):
    frame = RawFrame(np.full(shape, 0.5, np.float32), MICROSCOPE)
    levels = looking._used_range(frame.mosaic)
    assert levels[0] < levels[1], "also a flat one"
    small = looking._overview(frame, levels)
    assert max(small.shape) <= 200
    for row, column in ((0, 0), (10_000, 10_000)):
        look = _Look(row, column, side, levels=levels)
        marked = looking._mark(small, look, shape)
        assert (marked == (255, 160, 0)).all(-1).any()
        assert (small == small[0, 0]).all(), "the overview itself stays"
        assert "mean 32768" in looking._histogram_svg(frame, look)


def test_the_overview_of_a_fine_pattern_is_flat():
    # Stripes of one green site each: one site in so many would show broad ones that are not there, and a
    # mean of five sites shows a fifth.
    mosaic = np.tile(np.repeat([0.2, 0.8], 2), 500)[None, :].repeat(1400, 0).astype(np.float32)
    small = looking._overview(RawFrame(mosaic, DRONE), (0.0, 1.0))
    assert np.ptp(small.astype(int)) <= 255 * 0.6 / 5 + 1


def dng(tmp_path, value=0.5):
    sites = np.full((24, 32), value, np.float32)
    return write_dng(tmp_path / "mine.dng", sites, DRONE).read_bytes()


def upload(button, name, content):
    """Hand a file to the button, as a browser does."""
    facts = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    button.value = ({**facts, "last_modified": datetime.now(UTC)},)


def test_an_upload_joins_the_explorer(frames, tmp_path):
    box = raw_explorer(frames)
    found = controls(box)
    name = "../holiday/mine.dng"  # as a browser might say
    upload(found["raw file"], name, dng(tmp_path))
    assert found["frame"].value == name
    assert found["frame"].options == ("drone", "microscope", name)
    assert DRONE.name in pages(box)
    before = pages(box)
    upload(found["raw file"], name, dng(tmp_path, 0.25))
    assert pages(box) != before, "another file of the same name"


def test_a_bad_upload_says_so_and_changes_nothing(monkeypatch):
    monkeypatch.setattr("r2l.rawfile.frame._SAID", set())  # a doubt is said once a camera
    received, menu, drawn = {}, ipywidgets.Dropdown(), []
    live = Live(lambda: drawn.append(menu.value), ipywidgets.HTML())
    button, camera, note = _upload_to(received, menu, live).children
    upload(button, "song.mp3", b"no raw file")
    assert note.value.startswith("song.mp3: ")
    picture = io.BytesIO()
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(picture, "PNG")
    upload(button, "grey.png", picture.getvalue())
    assert "does not say which camera" in note.value
    assert (received, menu.options, drawn) == ({}, (), [])
    camera.value = "drone"
    assert drawn == ["grey.png"]
    assert received["grey.png"].camera == DRONE
    assert note.value.startswith("grey.png: 32 x 24; Hasselblad")
    assert note.value.endswith("Is it the right camera?"), "what is odd about it, not only in a log"


class Drawer:
    """Counts its pictures and remembers what the slider said."""

    def __init__(self, seconds=0.0):
        self.slider, self.note = ipywidgets.IntSlider(0, 0, 1000), ipywidgets.HTML()
        self.drawn, self.seconds = [], seconds
        self.live = Live(self.draw, self.note)
        self.live.watch(self.slider)
        self.drawn.clear()  # the picture to begin with

    def draw(self):
        time.sleep(self.seconds)
        if self.slider.value == 666:
            raise ValueError("no <picture>")
        self.drawn.append(self.slider.value)


def test_without_a_loop_a_change_draws_at_once():
    drawer = Drawer()
    drawer.slider.value = 7
    assert drawer.drawn == [7]
    with pytest.raises(ValueError, match="no <picture>"):
        drawer.slider.value = 666


def test_while_one_picture_is_drawn_changes_replace_each_other():
    drawer = Drawer(seconds=0.02)

    async def drag():
        for value in range(1, 101):  # a message every millisecond, a picture every 20
            drawer.slider.value = value
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)

    asyncio.run(drag())
    assert drawer.drawn[-1] == 100, "the last value is drawn"
    assert 2 <= len(drawer.drawn) < 50, "and not every one before it"
    assert drawer.drawn == sorted(set(drawer.drawn))


def test_changes_that_come_together_are_one_picture_and_an_error_is_shown():
    drawer = Drawer()

    async def jump():
        for value in (1, 2, 3):
            drawer.slider.value = value
        assert drawer.drawn == [], "the message's handler is not held up"
        for value in (666, 4):
            await asyncio.sleep(0.05)
            assert drawer.drawn == [3]
            drawer.slider.value = value
        assert drawer.note.value == "ValueError: no &lt;picture&gt;"
        await asyncio.sleep(0.05)

    asyncio.run(jump())
    assert drawer.drawn == [3, 4], "what comes after it is drawn"


def test_a_picture_is_a_png_with_words():
    picture = np.random.default_rng(0).random((6, 9, 3))
    page = picture_html(to_uint8(picture), 'a "tile"', 90)
    assert 'alt="a &quot;tile&quot;" width="90" height="60"' in page
    data = re.search(r"base64,([^\"]+)", page)[1]
    np.testing.assert_array_equal(pixels(data), np.rint(picture * 255).astype(np.uint8))
    np.testing.assert_array_equal(to_uint8(np.array([-1.0, 2.0])), [0, 255])
