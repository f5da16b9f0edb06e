"""Figures say what they were given, and leave matplotlib's global state alone."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from r2l.datasets import SyntheticMicroscopy
from r2l.drift import published_matrix, summarise
from r2l.viz import plot_matrix, plot_samples, plot_stages, plot_views


@pytest.fixture(scope="module")
def summary():
    rng = np.random.default_rng(0)
    base = {"image": np.arange(200), "group": np.arange(200) // 4, "label": np.arange(200) % 2}
    rates = {("a", "a"): 0.9, ("a", "b"): 0.5, ("b", "a"): 0.9, ("b", "b"): 0.9}
    luck = rng.random(200)
    tables = [
        pd.DataFrame(base).assign(train=train, test=test, seed=0, correct=luck < rate)
        for (train, test), rate in rates.items()
    ]
    return summarise(pd.concat(tables))


def texts(ax):
    return [t.get_text() for t in ax.texts]


def drawn(figure):
    """Render, so that a figure that can't be drawn fails here."""
    figure.canvas.draw()
    return figure


def test_matrix_shows_scores_half_widths_and_frames(summary):
    ax = drawn(plot_matrix(summary, title="mine")).axes[0]
    scores, half = summary.matrix(), (summary.matrix("high") - summary.matrix("low")) / 2
    shown = texts(ax)
    assert shown[0] == f"{scores.iloc[0, 0]:.2f}"
    assert shown[1] == f"±{half.iloc[0, 0]:.2f}"
    assert len(shown) == 8
    frames = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert [(round(p.get_x() + 0.42), round(p.get_y() + 0.42)) for p in frames] == [(1, 0)]
    assert ax.get_title(loc="left") == "mine"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_ylabel() == "trained under"


def test_published_matrix_stands_beside_on_the_same_scale(summary):
    figure = drawn(plot_matrix(summary, published_matrix("microscopy")))
    ours, theirs = figure.axes[:2]
    assert ours.images[0].norm is theirs.images[0].norm
    assert len(texts(theirs)) == 144
    # Colour is the difference to the row's diagonal: the worst published cell, .83 to .50.
    assert theirs.images[0].get_array().min() == pytest.approx(-0.33)


def test_letters_stand_out_from_their_cell():
    figure = drawn(plot_matrix(published_matrix("microscopy")))
    ax = figure.axes[0]
    colours = {t.get_text(): t.get_color() for t in ax.texts}
    assert colours["0.50"] == "white"
    assert colours["0.82"] != "white"


def test_scores_can_be_coloured_instead(summary):
    image = drawn(plot_matrix(summary, colour="score")).axes[0].images[0]
    np.testing.assert_allclose(image.get_array(), summary.matrix())
    with pytest.raises(ValueError, match="difference, score"):
        plot_matrix(summary, colour="rainbow")


def test_views_show_the_images_and_their_amplified_difference():
    images = {"x": torch.full((3, 4, 6), 0.5), "y": torch.full((2, 3, 4, 6), 0.52)}
    plain = drawn(plot_views(images)).axes
    assert [ax.get_title() for ax in plain] == ["x", "y"]
    np.testing.assert_allclose(plain[1].images[0].get_array(), 0.52)
    difference = drawn(plot_views(images, reference="x", gain=10)).axes[1]
    np.testing.assert_allclose(difference.images[0].get_array(), 0.7, rtol=1e-5)
    with pytest.raises(ValueError, match="'z'"):
        plot_views(images, reference="z")


def test_stages_tell_their_range_and_are_clipped_for_show():
    stages = {"raw": torch.rand(1, 1, 4, 4), "linear": torch.linspace(-1, 2, 48).view(1, 3, 4, 4)}
    axes = drawn(plot_stages(stages)).axes
    assert axes[1].get_title() == "linear\n-1.00 to 2.00"
    assert axes[0].images[0].get_array().ndim == 2
    assert axes[1].images[0].get_array().min() == 0
    with pytest.raises(ValueError, match="no stages"):
        plot_stages({})


def test_samples_stand_under_their_class():
    dataset = SyntheticMicroscopy(20, 0, size=16)
    figure = drawn(
        plot_samples(dataset, per_class=2, develop=lambda raw: raw.expand(-1, 3, -1, -1))
    )
    assert len(figure.axes) == 2 * len(dataset.classes)
    for label, name in enumerate(dataset.classes):
        members = np.flatnonzero(dataset.labels == label)
        assert figure.axes[label].get_title() == f"{name} ({len(members)})"
        if len(members):
            shown = figure.axes[label].images[0].get_array()[..., 0]
            np.testing.assert_allclose(shown, dataset[int(members[0])]["raw"][0].clip(0, 1))


def test_matplotlib_keeps_its_settings_and_no_window_is_opened(summary):
    settings = dict(matplotlib.rcParams)
    drawn(plot_matrix(summary, published_matrix("drone")))
    assert dict(matplotlib.rcParams) == settings
    assert plt.get_fignums() == []
