"""The explorer of a matrix: every cell of it, what is shown for classes and masks, and its pictures."""

import re

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch

from r2l.camera import MICROSCOPE
from r2l.datasets import Frames, SyntheticMicroscopy, develop_views
from r2l.drift import flips, predict_matrix, train_models
from r2l.drift.matrix import most_changed
from r2l.widgets import matrix_explorer
from r2l.widgets.matrix import _MOST, _changed_html, _score_matrix, _two_rows
from tests.test_widgets import pixels

CODES = ["bi,s,ga", "me,u,me"]


@pytest.fixture(scope="module")
def experiment():
    dataset = SyntheticMicroscopy(40, seed=1, size=32)
    views = develop_views(dataset, CODES, progress=False)
    models = train_models(views, CODES, n_splits=2, epochs=1, progress=False)
    answers = predict_matrix(models, views, CODES, progress=False)
    return views, answers


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


def test_every_cell_shows_its_images(experiment):
    views, answers = experiment
    buttons, note, picture = parts(matrix_explorer(views, answers))
    assert len(buttons) == len(CODES) ** 2
    seen = set()
    for train in CODES:
        for test in CODES:
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
            framed = [b for b in buttons.values() if "transparent" not in b.layout.border_top]
            assert framed == [button]
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
        assert (found["before"] == lost["before"].reindex(found.index)).all()
        assert (found["after"] == lost["after"].reindex(found.index)).all()
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
