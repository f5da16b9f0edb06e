"""Figures say what they were given, and leave matplotlib's global state alone; alternative text."""

import base64
import io
import itertools
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from r2l import viz
from r2l.camera import CFA, DRONE
from r2l.datasets import SyntheticMicroscopy
from r2l.drift import published_matrix, summarise
from r2l.isp import StageGradient, StaticISP, stage_gradients
from r2l.sensor import mosaic
from r2l.viz.pictures import colour_sites, split_planes
from r2l.viz.style import LETTERS
from tests.common import LAYOUTS, drawn, refused
from tests.run_notebooks import IN_PAGE, find, slim
from tests.test_synthesis_drift import simulated
from tools.places import ROOT


@pytest.fixture(scope="module")
def summary():
    return summarise(simulated({(a, b): 0.5 if (a, b) == ("a", "b") else 0.9 for a in "ab" for b in "ab"}))


def test_matrix_shows_scores_half_widths_and_frames(summary):
    ax = drawn(viz.plot_matrix(summary, title="mine")).axes[0]
    scores, half = summary.matrix(), (summary.matrix("high") - summary.matrix("low")) / 2
    shown = [text.get_text() for text in ax.texts]
    assert shown[0] == f"{scores.iloc[0, 0]:.2f}"
    assert shown[1] == f"±{half.iloc[0, 0]:.2f}"
    assert len(shown) == 8
    frames = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert [(round(p.get_x() + 0.42), round(p.get_y() + 0.42)) for p in frames] == [(1, 0)]
    assert ax.get_title(loc="left") == "mine"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_ylabel() == "trained under"
    with pytest.raises(ValueError, match=r"own pipeline of the row 'a'; .* ask the model there"):
        viz.plot_matrix(summary.matrix().drop(columns="a"))


def test_published_matrix_stands_beside_on_the_same_scale(summary):
    figure = drawn(viz.plot_matrix(summary, published_matrix("microscopy")))
    ours, theirs = figure.axes[:2]
    assert ours.images[0].norm is theirs.images[0].norm
    assert len(theirs.texts) == 144
    # Colour is the difference to the row's diagonal: the worst published cell, .83 to .50.
    assert theirs.images[0].get_array().min() == pytest.approx(-0.33)
    # Letters stand out from their cell.
    colours = {text.get_text(): text.get_color() for text in theirs.texts}
    assert colours["0.50"] == "white" != colours["0.82"]


def test_views_show_the_images_and_their_amplified_difference():
    images = {"x": torch.full((3, 4, 6), 0.5), "y": torch.full((2, 3, 4, 6), 0.52)}
    plain = drawn(viz.plot_views(images)).axes
    assert [ax.get_title() for ax in plain] == ["x", "y"]
    np.testing.assert_allclose(plain[1].images[0].get_array(), 0.52)
    difference = drawn(viz.plot_views(images, reference="x", gain=10)).axes[1]
    np.testing.assert_allclose(difference.images[0].get_array(), 0.7, rtol=1e-5)
    refused("'z'", viz.plot_views, images, reference="z")


def test_stages_tell_their_range_and_are_clipped_for_show():
    stages = {"raw": torch.rand(1, 1, 4, 4), "linear": torch.linspace(-1, 2, 48).view(1, 3, 4, 4)}
    axes = drawn(viz.plot_stages(stages)).axes
    assert axes[1].get_title() == "linear\n-1.00 to 2.00"
    assert axes[0].images[0].get_array().ndim == 2
    assert axes[1].images[0].get_array().min() == 0
    refused("no stages", viz.plot_stages, {})
    refused("nothing to draw", viz.plot_levels, {})


def test_samples_stand_under_their_class():
    dataset = SyntheticMicroscopy(20, 0, size=16)
    figure = drawn(viz.plot_samples(dataset, per_class=2, develop=lambda raw: raw.expand(-1, 3, -1, -1)))
    assert len(figure.axes) == 2 * len(dataset.classes)
    for label, name in enumerate(dataset.classes):
        members = np.flatnonzero(dataset.labels == label)
        assert figure.axes[label].get_title() == f"{name} ({len(members)})"
        if len(members):
            shown = figure.axes[label].images[0].get_array()[..., 0]
            np.testing.assert_allclose(shown, dataset[int(members[0])]["raw"][0].clip(0, 1))


def test_no_figure_asks_for_smaller_letters_or_another_resolution():
    paths = (p for part in ("viz", "widgets") for p in (ROOT / "r2l" / part).glob("*.py"))
    source = "".join(path.read_text("utf-8") for path in paths)
    sizes = re.findall(r"""(?:font|label)size["']?(?:=|: )([\w.]+)""", source)
    assert sizes.count("LETTERS") > 20
    assert {s for s in sizes if s[0].isdigit() and float(s) < LETTERS} == set()
    made = re.findall(r"\bFigure\((?=[^)]).*", source)
    assert made
    assert all("dpi=DPI" in call for call in made), made


def test_matplotlib_keeps_its_settings_and_no_window_is_opened(summary):
    settings = dict(matplotlib.rcParams)
    drawn(viz.plot_matrix(summary, published_matrix("drone")))
    assert dict(matplotlib.rcParams) == settings
    assert plt.get_fignums() == []


@LAYOUTS
def test_planes_and_sites_hold_the_colour_of_their_filter(cfa):
    flat = torch.tensor([0.25, 0.5, 0.75]).view(1, 3, 1, 1).expand(1, 3, 6, 8)
    sites = mosaic(flat, cfa)[0, 0].numpy()
    planes = split_planes(sites, cfa)
    assert all(np.shares_memory(plane, sites) for plane in planes.values())
    colours = {"red": 0.25, "green 1": 0.5, "green 2": 0.5, "blue": 0.75}
    assert {n: np.unique(p).round(3).item() for n, p in planes.items()} == colours
    # Each site is in one plane, at its place.
    rows = np.arange(48, dtype=np.float32).reshape(6, 8)
    assert sorted(np.concatenate([p.ravel() for p in split_planes(rows, cfa).values()])) == list(range(48))
    assert all((np.diff(p, axis=1) == 2).all() for p in split_planes(rows, cfa).values())
    coloured = colour_sites(sites, cfa)
    np.testing.assert_allclose(coloured.sum(-1), sites)
    assert ((coloured > 0).sum(-1) == 1).all()
    assert [np.unique(coloured[..., c])[1].round(3) for c in range(3)] == [0.25, 0.5, 0.75]


def test_sites_are_written_as_numbers_of_16_bits():
    sites = np.array([[0.0, 1.0], [0.5, 0.25]], np.float32)
    ax = drawn(viz.plot_sites(sites, CFA.RGGB, title="here", gain=2)).axes[0]
    assert [t.get_text() for t in ax.texts] == ["0", "65535", "32768", "16384"]
    assert ax.get_title() == "here"


def test_levels_count_every_site_and_mark_black_and_white():
    sites = np.random.default_rng(0).uniform(0.1, 0.9, (32, 32)).astype(np.float32)
    ax = drawn(viz.plot_levels({"a": (sites, DRONE), "b": (sites, DRONE)})).axes[0]
    *planes, black, white = ax.lines
    assert [line.get_ydata().sum() for line in planes] == [256] * 4
    assert black.get_xdata()[0] == pytest.approx(np.mean(DRONE.black_level))
    assert white.get_xdata()[0] == 1


def test_transfer_shows_points_and_their_line():
    mean = np.array([1.0, 10.0, 100.0])
    ax = drawn(viz.plot_transfer({"camera": (mean, 2 * mean + 3, 2.0, 3.0)})).axes[0]
    points, line = ax.lines
    np.testing.assert_allclose(points.get_ydata(), 2 * mean + 3)
    np.testing.assert_allclose(line.get_ydata(), 2 * line.get_xdata() + 3)
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_gradients_stand_below_their_stage_on_a_scale_around_zero():
    raw = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    isp = StaticISP.from_code("bi,s,ga", DRONE)
    found = stage_gradients(isp, raw, lambda image: image.square().mean())
    figure = drawn(viz.plot_gradients(found))
    count = len(found)
    assert [ax.get_title() for ax in figure.axes[:count]] == list(found)
    for ax, (image, gradient) in zip(figure.axes[count:], found.values(), strict=True):
        shown = ax.images[0]
        np.testing.assert_allclose(shown.get_array(), gradient[0].sum(0), atol=1e-7)
        assert shown.norm.vmin == -shown.norm.vmax
        assert image.shape == gradient.shape
    nothing = {"raw": StageGradient(raw, torch.zeros_like(raw))}
    drawn(viz.plot_gradients(nothing))
    refused("no gradients", viz.plot_gradients, {})


def a_figure():
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    return figure


def test_a_described_figure_is_an_image_with_alternative_text():
    shown = viz.with_alt(a_figure(), 'A line that rises,\n  "steeply" <so to say>.')
    page = shown._repr_mimebundle_()
    assert 'alt="A line that rises, &quot;steeply&quot; &lt;so to say&gt;."' in page["text/html"]
    data = IN_PAGE.search(page["text/html"])[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).format == "PNG"
    assert page["text/plain"].startswith("<figure: A line that rises")
    refused("alternative text is empty", viz.with_alt, a_figure(), " ")


def test_the_runner_shrinks_described_figures_too():
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    page = viz.with_alt(a_figure(), "A line.")._repr_mimebundle_()
    cell = new_code_cell("x", outputs=[new_output("display_data", data=dict(page))])
    slim(new_notebook(cells=[cell]))
    after = cell.outputs[0]["data"]["text/html"]
    assert after.startswith('<img alt="A line."')
    picture = Image.open(io.BytesIO(base64.b64decode(IN_PAGE.search(after)[0])))
    assert picture.mode == "P"
    assert len(after) < len(page["text/html"])


def test_the_runner_finds_a_notebook_by_its_number():
    assert find("02").name == "02_differentiable_processing.ipynb"
    assert find("02_diff") == find(str(find("02")))
    for name in ("0", "99", ""):
        refused("01_raw_data, 02_diff", find, name, error=SystemExit)


def test_long_names_of_a_matrix_break_where_their_parts_meet_and_do_not_cover_one_another():
    names = ["bi,s,ga", "libraw:ahd+jpeg:75", "libraw:dht+jpeg:75", "ma,s,me+jpeg:75"]
    figure = drawn(viz.plot_matrix(pd.DataFrame(np.eye(4), names, names)))
    ax = figure.axes[0]
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
        assert [label.get_text().replace("+\n", "+") for label in labels] == names
