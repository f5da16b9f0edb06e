"""The explorers of notebooks 03, 06 and 07: what they show, every control at its ends, and an upload."""

import re
from dataclasses import replace
from itertools import product

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch

from r2l.camera import CFA, DRONE, MICROSCOPE
from r2l.datasets import Frames, SyntheticMicroscopy, develop_views
from r2l.drift import flips, predict_matrix, train_models
from r2l.drift.forensics import tolerance_report
from r2l.drift.matrix import most_changed
from r2l.isp import PIPELINES, StaticISP
from r2l.isp.added_stages import clip_highlights
from r2l.isp.adjustable import camera_settings
from r2l.rawfile import RawFrame, write_dng
from r2l.training.export import _save_strip
from r2l.training.tracking import TrackingError, track
from r2l.widgets import camera as own
from r2l.widgets import matrix_explorer
from r2l.widgets import results as lab
from r2l.widgets.camera import _OWN
from r2l.widgets.results import _MOST, _changed_html, _score_matrix, _two_rows
from tests.common import refused
from tests.test_forensics import Bright, flat_frames
from tests.test_widgets import controls, pages, pictures, pixels, upload

CODES = ["bi,s,ga", "me,u,me"]


@pytest.fixture(scope="module")
def report():
    frames = flat_frames(np.linspace(0.3, 0.9, 80), DRONE)
    settings = ["black_level", "red_gain", "blue_gain", "gamma"]
    return tolerance_report(Bright(0.45), frames, settings=settings, points=5, refine=1, progress=False)


@pytest.fixture
def frames():
    mosaic = (0.1 + 0.5 * np.random.default_rng(0).random((64, 48))).astype(np.float32)
    turned = replace(DRONE, name="<turned>", cfa=CFA.GBRG)
    return {"own": RawFrame(mosaic, turned), "other": RawFrame(mosaic, MICROSCOPE)}


def developed(raw, camera, code):
    """The picture (H, W, 3) in steps of 8 bit, not yet rounded."""
    return 255 * StaticISP.from_code(code, camera)(raw)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("cfa", CFA)
def test_numbers_go_with_their_colours(cfa):
    levels = replace(DRONE, black_level=(0.01, 0.02, 0.03, 0.04))
    moved = own.on_layout_of(levels, replace(MICROSCOPE, cfa=cfa))
    assert moved.cfa is cfa
    assert (moved.white_balance, moved.colour_matrix) == (DRONE.white_balance, DRONE.colour_matrix)
    # By name of the colour all settings are those of the camera the numbers are from.
    assert camera_settings(moved, levels) == pytest.approx(camera_settings(levels, levels))


def test_the_verdict_says_where(report):
    assert report.verdict(report.check(DRONE)).startswith("inside, in all 3 settings")
    verdict, table = own._verdict_html(report, replace(DRONE, black_level=(0.3,) * 4))
    assert verdict == "<b>outside in 1 of 4 settings: black level</b>"
    assert table.count("<tr>") == 1 + len(report.table)
    # Of the range: .3 of 1 - .0625.
    assert re.search(r"black level</td>.*?0\.32</td>.*?✗ outside", table)
    assert "? unknown" in table  # a camera tells no gamma


def test_a_frame_shown_small_keeps_its_colours_where_they_are():
    # A ramp stays a ramp only if each new site lies in the middle of those that it is the mean of.
    rows, columns = np.mgrid[:90, :124].astype(np.float32)
    small = RawFrame((rows + 2 * columns) / 400, DRONE).binned(40).mosaic
    assert small.shape == (16, 24)  # a fifth is 18 x 24.8, less what fills no site
    np.testing.assert_allclose(np.diff(small, axis=0), 5 / 400, rtol=1e-3)
    np.testing.assert_allclose(np.diff(small, axis=1), 10 / 400, rtol=1e-3)
    whole = RawFrame(rows / 90, DRONE)
    assert whole.binned(124) is whole


def test_verdicts_can_be_read_in_any_theme(report):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    _, table = own._verdict_html(report, DRONE)
    colours = re.findall(r"color: (#\w{6}); background: white", table)
    assert len(colours) == len(report.table)
    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in colours)


def test_camera_explorer_at_every_value(report, frames):
    box = own.camera_explorer(frames, report)
    menus = controls(box)
    seen = set()
    for name, numbers, code in product(frames, menus["numbers"].options, PIPELINES):
        menus["frame"].value, menus["numbers"].value, menus["pipeline"].value = name, numbers, code
        ((alt, data),) = pictures(box)
        assert all(part in alt for part in (name, code))
        camera = frames[name].camera
        if numbers != _OWN:
            camera = own.on_layout_of(DRONE, camera)
        tile = clip_highlights(frames[name].tensor(), camera)
        assert abs(pixels(data) - developed(tile, camera, code)).max() <= 0.503
        seen.add(data)
    # Of the turned drone both numbers are the same; the microscope looks otherwise by the drone's.
    assert len(seen) == 3 * len(PIPELINES)
    assert "&lt;turned&gt;" in pages(own.camera_explorer(frames, report))


def test_a_large_frame_is_cut_and_binned_anew_only_when_it_changes(report, frames, monkeypatch):
    seen, binned = [], RawFrame.binned

    def counted(frame, side):
        seen.append(frame.camera.name)
        return binned(frame, side)

    monkeypatch.setattr(RawFrame, "binned", counted)
    menus = controls(own.camera_explorer(frames, report))
    for numbers, code in product((*menus["numbers"].options, _OWN), PIPELINES[:3]):
        menus["numbers"].value, menus["pipeline"].value = numbers, code
    assert seen == ["<turned>"] * 2, "once by its own numbers, once by the other camera's"
    menus["frame"].value = "other"
    assert seen[2:] == [MICROSCOPE.name]


def test_a_frame_shown_small_is_cut_site_by_site_before_its_means(report):
    # A third of the sites saturates: their mean alone would pass below the cut, and come out pink.
    rng = np.random.default_rng(0)
    mosaic = np.where(rng.random((900, 1200)) < 0.3, 1.0, DRONE.black_level[0]).astype(np.float32)
    ((_, data),) = pictures(own.camera_explorer({"sun": RawFrame(mosaic, DRONE)}, report))
    cut = clip_highlights(torch.tensor(mosaic)[None, None], DRONE)[0, 0].numpy()
    expected = developed(RawFrame(cut, DRONE).binned(own._PICTURE).tensor(), DRONE, "bi,s,ga")
    assert abs(pixels(data) - expected).max() <= 0.503
    assert np.ptp(expected.mean((0, 1))) < 0.05 * 255


def test_a_file_can_be_added(report, frames, tmp_path):
    box = own.camera_explorer(frames, report)
    path = write_dng(tmp_path / "new.dng", frames["own"].mosaic, replace(DRONE, name="new"))
    menus = controls(box)
    upload(menus["raw file"], "photo.dng", path.read_bytes())
    assert menus["frame"].value == "photo.dng"
    assert "new, RGGB, 48 x 64" in pages(box)
    assert "<b>inside, in all" in pages(box)
    refused("no frames", own.camera_explorer, {}, report)


@pytest.mark.parametrize("shape", [(424, 420), (1000, 1500), (2000, 1002), (2748, 3664)])
def test_a_file_of_any_size_is_shown_whole_and_says_what_it_leaves_out(report, frames, tmp_path, shape):
    mosaic = np.tile(frames["own"].mosaic, (60, 80))[: shape[0], : shape[1]]
    box = own.camera_explorer(frames, report)
    path = write_dng(tmp_path / "large.dng", mosaic, replace(DRONE, name="large"))
    upload(controls(box)["raw file"], "large.dng", path.read_bytes())
    ((_, data),) = pictures(box)
    shown = np.array(pixels(data).shape[:2])
    said = r"(\d+) x \1 sites of a colour .* without (\d+) rows below and (\d+) columns on the right"
    n, *left_out = map(int, re.search(said, pages(box)).groups())
    assert n % 2
    assert max(shown) <= own._PICTURE
    assert tuple(n * shown + left_out) == shape
    assert max(left_out) < 3 * n


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two runs, one with two folds, whose pictures are flat: their value says what they are."""
    folder = tmp_path_factory.mktemp("lab")
    for name, folds, epochs in (("first", 2, 2), ("second", 1, 3), ("bare", 0, 0)):
        with track("widgets", name, store=folder) as run:
            for fold in range(folds):
                with run.nested(f"fold {fold}") as child, child.files() as out:
                    for epoch in range(epochs):
                        child.metrics({"train_loss": 1.0, "val_loss": 2.0 - epoch}, step=epoch)
                        flat = torch.full((1, 3, 8, 8), (100 * fold + 10 * epoch) / 255)
                        for kind in ("stages", "gradients"):
                            path = out / kind / "demosaic" / f"epoch_{epoch:03d}.png"
                            path.parent.mkdir(parents=True, exist_ok=True)
                            _save_strip(flat, path, signed=kind == "gradients")
    return folder


def test_what_runs_have_tracked(store):
    found = lab.tracked(store)
    assert set(found) == {"first, fold 0", "first, fold 1", "second, fold 0"}
    for name, run in found.items():
        epochs = 3 if "second" in name else 2
        assert set(run.pictures) == {"demosaic", "gradient at demosaic"}
        assert all(list(pictures) == list(range(epochs)) for pictures in run.pictures.values())
    assert np.all(np.asarray(lab.picture_of(found["first, fold 1"], "demosaic", 1, store)) == 110)
    refused("demosaic", lab.picture_of, found["first, fold 1"], "gamma", 1, store)


def test_lab_explorer_at_every_value(store):
    box = lab.lab_explorer(store)
    menus = controls(box)
    curves = set()
    for name in menus["run"].options:
        menus["run"].value = name
        ((alt, data),) = pictures(box.children[-1])
        assert alt == f"Losses of {name} by epoch, in training and validation"
        curves.add(data)
        for what in menus["picture"].options:
            menus["picture"].value = what
            assert menus["epoch"].options == ((0, 1, 2) if "second" in name else (0, 1))
            for epoch in menus["epoch"].options:
                menus["epoch"].value = epoch
                (alt, data), _ = pictures(box)
                assert alt.startswith(f"{what} of {name} after epoch {epoch}")
                if what == "demosaic":
                    assert np.all(pixels(data) == 100 * ("fold 1" in name) + 10 * epoch)
                assert ("white and black" in pages(box)) == what.startswith("gradient")
    assert len(curves) >= 2
    menus["run"].value, menus["epoch"].value = "second, fold 0", 2
    menus["run"].value = "first, fold 0"
    assert menus["epoch"].value == 1, "inside the other run"


def test_a_store_without_pictures_is_an_error(tmp_path):
    refused("no store", lab.lab_explorer, tmp_path, error=TrackingError)
    with track("widgets", "bare", store=tmp_path):
        pass
    refused("track_processing", lab.lab_explorer, tmp_path)


@pytest.fixture(scope="module")
def experiment():
    views = develop_views(SyntheticMicroscopy(40, seed=1, size=32), CODES, progress=False)
    models = train_models(views, CODES, n_splits=2, epochs=1, progress=False)
    return views, predict_matrix(models, views, CODES, progress=False)


@pytest.fixture(scope="module")
def masked():
    """Answers by hand: image 2 falls most, image 0 a little, image 1 rises."""
    levels = dict(zip(CODES, (0.25, 0.75), strict=True))
    images = {code: torch.full((3, 3, 8, 12), level) for code, level in levels.items()}
    masks = torch.ones(3, 1, 8, 12, dtype=torch.uint8)
    views = Frames(None, masks, np.arange(3), MICROSCOPE, classes=("no", "yes"), images=images)
    ious = {CODES[0]: [50, 20, 80], CODES[1]: [40, 30, 10]}
    rows = [
        {"train": CODES[0], "test": test, "seed": 0, "fold": 0, "image": i, "group": i}
        | {"iou": hits / 100, "intersection": hits, "union": 100}
        for test, values in ious.items()
        for i, hits in enumerate(values)
    ]
    return views, pd.DataFrame(rows)


def parts(explorer):
    """Return the buttons by their place, the note and the picture."""
    grid, note, picture = explorer.children
    buttons = [child for child in grid.children if isinstance(child, ipywidgets.Button)]
    return {button.tooltip: button for button in buttons}, note, picture


def test_flips_are_the_answers_that_changed(experiment):
    _, answers = experiment
    table = flips(answers, *CODES)
    cells = answers[answers["train"] == CODES[0]].pivot(index="image", columns="test", values="correct")
    own, other = (cells[code].astype(bool) for code in CODES)
    assert set(table["image"]) == set(own.index[own != other])
    assert (table["change"] == "lost").sum() == (own & ~other).sum()
    assert len(flips(answers, "bi,s,ga", "bi,s,ga")) == 0
    refused(r"me,u,me", flips, answers, "bi,s,ga", "ma,s,ga")


def test_every_cell_shows_its_images(experiment):
    views, answers = experiment
    buttons, note, picture = parts(matrix_explorer(views, answers))
    assert len(buttons) == len(CODES) ** 2
    seen = set()
    for train, test in product(CODES, CODES):
        cell = answers.query("train == @train and test == @test")
        button = buttons[f"trained under {train}, tested under {test}"]
        assert button.description == f"{cell['correct'].mean():.2f}"
        assert "r2l-matrix-cell" in button._dom_classes
        button.click()
        lost = (flips(answers, train, test)["change"] == "lost").sum()
        assert f"answers lost: {lost};" in note.value
        assert f"Above developed by {train}: " in picture.value
        assert f"Below developed by {test}: " in picture.value
        seen.add(picture.value)
        assert [b for b in buttons.values() if "transparent" not in b.layout.border_top] == [button]
    assert len(seen) == len(buttons), "each cell another page"


def test_it_begins_with_the_worst_cell(experiment):
    views, answers = experiment
    scores, metric = _score_matrix(answers)
    assert metric == "accuracy"
    falls = scores.sub(np.diag(scores), axis="index").stack()
    _, note, _ = parts(matrix_explorer(views, answers))
    train, test = falls.idxmin()
    assert f"trained under {train} (above), tested under {test} (below)" in note.value


def test_lost_answers_come_first_and_nothing_else(experiment):
    _, answers = experiment
    for train, test in (CODES, CODES[::-1]):
        table = flips(answers, train, test)
        lost = table[table["change"] == "lost"].set_index("image")
        found = most_changed(answers, train, test, most=1000).set_index("image")
        if lost.empty:
            assert (found["fall"] == 0).any()
            continue
        assert set(found.index) == set(lost.index)
        answered = ["before", "after"]
        assert (found[answered] == lost[answered].reindex(found.index)).all(axis=None)
    own = most_changed(answers, CODES[0], CODES[0], _MOST)
    assert len(own) == _MOST, "where nothing can flip, the first images"
    assert (own["fall"] == 0).all()


def test_masks_are_told_by_their_iou(masked):
    views, answers = masked
    found = most_changed(answers, *CODES, _MOST)
    assert found["image"].tolist() == [2, 0]
    assert found["fall"].to_numpy() == pytest.approx([0.7, 0.1])
    page = _changed_html(views, answers, *CODES)
    assert "<span>IoU 0.80</span><span>IoU 0.50</span>" in page
    buttons, note, _ = parts(matrix_explorer(views, answers))
    assert [b.description for b in buttons.values()] == ["0.50", "0.27"]
    assert "images with a lower IoU: 2; below, all of them" in note.value
    (data,) = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
    picture = pixels(data)
    assert (picture[0, 0] == 64).all(), "above as trained"
    assert (picture[-4, 0] == 191).all(), "below as tested"
    assert picture.shape[1] == 2 * (views.images[CODES[0]].shape[-1] + 2), "no empty places"


def test_large_pictures_become_small_and_keep_their_form():
    images = torch.rand(2, 3, 300, 600)
    page = _two_rows(images, images)
    assert page.shape[1] <= 876
    assert page.shape[0] / 2 < 60
    small = _two_rows(images[..., :20, :20], images[..., :20, :20])
    expected = np.rint(images[0, :, :20, :20].permute(1, 2, 0).numpy() * 255)
    assert (small[:20, :20] == expected).all(), "small ones are not touched"
