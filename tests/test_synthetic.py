"""Properties of the synthetic data sets: reproducible, honest in their labels, near the published."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, gaussian_filter, label
from torch.utils.data import DataLoader

from r2l.datasets import INFO, SyntheticDrone, SyntheticMicroscopy
from r2l.datasets.twins.aerial_layout import TILE, Box, draw_photo
from r2l.datasets.twins.aerial_paint import _paint_photo
from r2l.datasets.twins.procedural import apportion, smooth, smooth_reach
from r2l.datasets.twins.smear import _draw_smear, _Zone
from r2l.isp import StaticISP

SETS = {
    "microscopy": lambda n=12, seed=0, **k: SyntheticMicroscopy(n, seed, size=32, **k),
    "segmentation": lambda n=12, seed=0, **k: SyntheticDrone(n, seed, size=32, **k),
    "classification": lambda n=12, seed=0, **k: SyntheticDrone(n, seed, size=32, task="classification", **k),
}
every_set = pytest.mark.parametrize("make", SETS.values(), ids=SETS)


@pytest.fixture(scope="module")
def smears():
    data = SyntheticMicroscopy(300, 5, size=48)
    return data, torch.stack([item["raw"] for item in data])


@pytest.fixture(scope="module")
def tiles():
    data = SyntheticDrone(200, 5, size=48, empty=0.3)
    items = list(data)
    return data, torch.stack([i["raw"] for i in items]), torch.stack([i["mask"] for i in items])


@every_set
def test_contract(make):
    data = make()
    item = data[-1]
    assert len(data) == len(data.labels) == len(data.groups) == 12
    assert item["raw"].shape == (1, 32, 32)
    assert item["raw"].dtype == torch.float32
    assert 0 <= item["raw"].min() <= item["raw"].max() <= 1
    assert item["meta"] == {"group": data.groups[-1], "intensity": 1.0, "camera": data.camera.name}
    assert np.issubdtype(data.labels.dtype, np.integer)
    if "mask" in item:
        assert item["mask"].shape == (32, 32)
        assert item["mask"].dtype == torch.int64
    else:
        assert item["label"] == data.labels[-1]
    with pytest.raises(IndexError):
        data[12]


@every_set
def test_same_items_in_any_order_and_on_any_number_of_workers(make):
    data = make()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    forwards = torch.stack([data[i]["raw"] for i in range(12)])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    again = make()
    backwards = torch.stack([again[i]["raw"] for i in reversed(range(12))]).flip(0)
    by_two = torch.cat([batch["raw"] for batch in DataLoader(data, 5, num_workers=2)])
    assert torch.equal(forwards, backwards)
    assert torch.equal(forwards, by_two)


@every_set
def test_items_and_seeds_differ_and_the_transform_is_the_last_step(make):
    raws = torch.stack([item["raw"] for item in make(seed=0)])
    assert len(raws.unique(dim=0)) == 12
    assert not torch.equal(raws[0], make(seed=1)[0]["raw"])
    seen = make(transform=lambda item: {**item, "seen": sorted(item)})[3]["seen"]
    assert {"meta", "raw"} < {*seen}


@every_set
def test_another_intensity_records_the_same_scene(make):
    bright, dim = make(), make(intensity=0.05)
    black = torch.tensor(bright.camera.black_level).reshape(2, 2).repeat(16, 16)
    one, other = (torch.stack([d[i]["raw"][0] - black for i in range(6)]) for d in (bright, dim))
    assert other.sum() / one.sum() == pytest.approx(0.05, rel=0.05)
    green = torch.cat([t[:, ::2, 1::2].flatten(1) for t in (one, other)])
    alike = torch.corrcoef(green)[:6, 6:]
    assert (alike.argmax(1) == torch.arange(6)).all()
    assert not torch.allclose(one - one.mean(), 20 * (other - other.mean()), rtol=1e-3)
    assert dim[0]["meta"]["intensity"] == 0.05
    if "mask" in dim[0]:
        assert all(torch.equal(bright[i]["mask"], dim[i]["mask"]) for i in range(6))


@pytest.mark.parametrize("n", [9, 100, 940, 1234])
def test_class_proportions_are_the_published_ones(n):
    counts = np.bincount(SyntheticMicroscopy(n).labels, minlength=9)
    exact = n / 940 * np.array(INFO["microscopy"].class_counts)
    assert counts.sum() == n
    assert (abs(counts - exact) < 1).all()


def test_apportion_gives_the_rest_to_the_largest_remainders():
    assert apportion(10, [1, 1, 1]).tolist() == [4, 3, 3]
    assert apportion(5, [19, 1]).tolist() == [5, 0]


@pytest.mark.parametrize("sigma", [0.16, 0.63, 2.52, 5.04])
def test_smooth_is_scipys_filter_without_the_border(sigma):
    picture, r = np.random.default_rng(0).random((50, 64), np.float32), smooth_reach(sigma)
    expected = gaussian_filter(picture, sigma, truncate=3)[r : 50 - r, r : 64 - r]
    np.testing.assert_allclose(smooth(picture, sigma), expected, rtol=1e-6)


def test_zones_do_not_tell_the_label():
    data = SyntheticMicroscopy(940, 2)
    rng = np.random.default_rng(0)

    def purity(labels):
        return np.mean([np.bincount(labels[data.groups == g]).max() / 5 for g in range(188)])

    by_chance = [purity(rng.permutation(data.labels)) for _ in range(50)]
    assert abs(purity(data.labels) - np.mean(by_chance)) < 4 * np.std(by_chance)
    assert (np.bincount(data.groups) == 5).all()


def test_zones_share_their_light(smears):
    data, raws = smears
    lamp = raws[:, 0, 1::2, ::2].flatten(1).quantile(0.95, 1).log()  # the empty field, green
    assert torch.stack([lamp[data.groups == g].std() for g in range(60)]).mean() < lamp.std() / 2


def test_photos_are_groups_with_both_labels():
    data = SyntheticDrone(120, 1, size=32, task="classification")
    assert np.bincount(data.labels).tolist() == [60, 60]
    assert np.bincount(data.groups).max() <= 16
    assert np.mean([len(set(data.labels[data.groups == g])) == 2 for g in np.unique(data.groups)]) > 0.7
    assert len(np.unique(np.column_stack([data.groups, data.places]), axis=0)) == 120


@pytest.mark.parametrize("empty", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("most", [1, 7])
def test_share_of_empty_tiles_and_size_of_groups(empty, most):
    data = SyntheticDrone(20, 0, size=32, empty=empty, tiles_per_photo=most)
    assert len(data) == 20
    assert (data.labels == 0).sum() == 20 * empty
    assert np.bincount(data.groups).max() <= most


def assert_near(measured, published, ratio):
    assert (abs(np.log(np.divide(measured, published))) < np.log(ratio)).all()


def test_statistics_are_near_the_published(smears, tiles):
    published = ((0.91, 0.84, 0.94), (0.08, 0.12, 0.05)), ((0.35, 0.36, 0.35), (0.12, 0.11, 0.12))
    for (data, raws, *_), (mean, std) in zip((smears, tiles), published, strict=True):
        with torch.no_grad():
            image = StaticISP.from_code("bi,s,ga", data.camera)(raws)
        assert_near(image.mean((0, 2, 3)), mean, 1.15)
        assert_near(image.std((0, 2, 3)), std, 1.5)
    raws = smears[1]
    green = torch.cat([raws[..., ::2, 1::2], raws[..., 1::2, ::2]])
    sites = [raws[..., ::2, ::2], green, raws[..., 1::2, 1::2]]
    assert_near([s.mean() for s in sites], [0.5663, 0.1401, 0.0731], 1.15)
    assert_near([s.std() for s in sites], [0.097, 0.0423, 0.008], 1.5)


def test_small_tiles_show_the_same_field():
    zone = _Zone(np.array([0.6, 0.18, 0.08]), np.zeros(2), np.ones(4), 0.2, 1.0, 0.3)
    for name in INFO["microscopy"].classes:
        large, small = (_draw_smear(name, zone, s, np.random.default_rng(8)) for s in (256, 64))
        shrunk = large.reshape(3, 64, 4, 64, 4).mean((2, 4))
        assert np.corrcoef(shrunk[1].ravel(), small[1].ravel())[0, 1] > 0.9, name
    large, small = (_paint_photo(draw_photo(0, 0), s, 2 * s, s, s, TILE / s)[1].mean() for s in (256, 64))
    assert large == pytest.approx(small, abs=0.01)


def test_masks_agree_with_labels(tiles):
    data, _, masks = tiles
    area = masks.float().mean((1, 2)).numpy()
    assert (area[data.labels == 0] == 0).all()
    assert (area[data.labels == 1] > 0.01).all()
    assert np.mean(data.labels) == pytest.approx(0.7, abs=0.01)


def test_mask_is_where_cars_change_the_picture():
    # An overcast day without shadows, and no trees: cars shine through the fringe of a crown.
    photo = draw_photo(3, 1)._replace(sun=0.0, trees=[])
    window = 0, 0, 768, 1024, 0.12
    with_cars, mask = _paint_photo(photo, *window)
    without, nothing = _paint_photo(photo._replace(cars=[]), *window)
    change = abs(with_cars - without).sum(0)
    assert mask.any()
    assert not nothing.any()
    assert np.median(change[mask]) > 0.01
    near = binary_dilation(mask, np.ones((13, 13)))  # the lens reaches 4 pixels
    far = ~near[8:-8, 8:-8]  # and brings light from cars beyond the border
    assert change[8:-8, 8:-8][far].max() < 1e-4


def test_cars_have_their_size_in_metres():
    car = Box(y=20.0, x=20.0, heading=0.0, length=4.5, width=1.8, height=1.5, colour=np.ones(3))
    empty = draw_photo(0, 0)._replace(roads=[], lots=[], roofs=[], junk=[], trees=[])
    _, mask = _paint_photo(empty._replace(cars=[car]), 200, 200, 256, 256, 0.06)
    height, width = (np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (1, 0))
    assert (height, width) == (pytest.approx(75, abs=2), pytest.approx(30, abs=2))
    assert label(mask)[1] == 1


def test_windows_agree_with_their_neighbours():
    data = SyntheticDrone(1, 4, size=64)
    block, cars = data.scene(0, 2, 3, rows=2, columns=2)
    assert block.shape == (3, 128, 128)
    for row, column in np.ndindex(2, 2):
        light, mask = data.scene(0, 2 + row, 3 + column)
        part = slice(64 * row, 64 * row + 64), slice(64 * column, 64 * column + 64)
        torch.testing.assert_close(block[:, *part], light, atol=1e-6, rtol=1e-5)
        assert torch.equal(cars[part], mask)


def test_items_are_tiles_of_their_frame():
    data = SyntheticDrone(4, 6, size=32)
    frame = data.frame(0)
    assert frame["raw"].shape == (1, 192, 256)
    for i in np.flatnonzero(data.groups == 0):
        row, column = 32 * data.places[i]
        part = (slice(row, row + 32), slice(column, column + 32))
        assert torch.equal(frame["raw"][:, *part], data[i]["raw"])
        assert torch.equal(frame["mask"][part], data[i]["mask"])


def test_classes_can_be_learned_and_overlap(smears):
    data, raws = smears
    y, x = np.mgrid[-23:24:2, -23:24:2]
    ring = (np.hypot(y, x) // 2).astype(int)
    sites = np.stack([raws[:, 0, ::2, ::2], raws[:, 0, ::2, 1::2], raws[:, 0, 1::2, 1::2]], 1)
    rings = [sites[:, :, ring == r] for r in range(9)]
    features = np.concatenate([f(r, axis=2) for r in rings for f in (np.mean, np.std)], 1)
    features = (features - features.mean(0)) / features.std(0)
    features = np.column_stack([features, np.ones(len(features))])
    test = data.groups % 3 == 0
    gram = features[~test].T @ features[~test] + 3 * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features[~test].T @ np.eye(9)[data.labels[~test]])
    accuracy = np.mean((features[test] @ weights).argmax(1) == data.labels[test])
    assert 230 / 940 + 0.2 < accuracy < 0.99  # better than the commonest class


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (SyntheticMicroscopy, {"n": 0}, "at least 1"),
        (SyntheticMicroscopy, {"size": 33}, "even size"),
        (SyntheticMicroscopy, {"intensity": -1.0}, "0 or more"),
        (SyntheticDrone, {"task": "detection"}, "segmentation, classification"),
        (SyntheticDrone, {"n": 0}, "at least 1"),
        (SyntheticDrone, {"empty": 2.0}, "at most 1"),
        (SyntheticDrone, {"seed": -1}, "0 or more"),
    ],
)
def test_wrong_arguments_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**{"n": 2, **arguments})
