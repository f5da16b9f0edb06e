"""Defects of the sensor and the lens: what a DNG says of them, what they do, and their correction."""

import struct
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator

from r2l.camera import DRONE, MICROSCOPE
from r2l.datasets import RawFolder
from r2l.drift.sensor_drift import drift_sensor
from r2l.isp import correct_defects, correct_lines, correct_shading
from r2l.isp.added_stages import measure_defects
from r2l.isp.functional import subtract_black_level
from r2l.options import Options
from r2l.rawfile import RawFileError, RawFileWarning, RawLayout, read_raw
from r2l.sensor import DRONE_NOISE, add_line_noise, apply_levels, falloff
from r2l.training.components import open_data
from tests.common import refused, unchanged
from tests.conftest import invoke
from tests.reference import noise_variance
from tests.test_raw_kinds import BLACK, LIGHT, WHITE, linear, steps, write
from tests.test_rawfile import FULL, tiles

HEIGHT, WIDTH = LIGHT.shape
VIGNETTE, BAD_CONSTANT, BAD_LIST, GAIN_MAP = 3, 4, 5, 9


def opcode_list(*opcodes, count=None):
    data = struct.pack(">I", len(opcodes) if count is None else count)
    for number, parameters in opcodes:
        data += struct.pack(">IIII", number, 0x01030000, 1, len(parameters)) + parameters
    return data


def opcode_tag(number, data):
    return ({1: 51008, 2: 51009, 3: 51022}[number], 7, len(data), data, True)


def vignette(*k, centre=(0.5, 0.5)):
    return VIGNETTE, struct.pack(">7d", *k, *centre)


def gain_map(points, corner=(0, 0), pitch=(1, 1), planes=1, plane=0, spacing=None):
    """A map over the whole picture; ``points`` (V, H) or (V, H, planes)."""
    points = np.atleast_3d(points)
    down, across, depth = points.shape
    spacing = spacing or (1 / max(down - 1, 1), 1 / max(across - 1, 1))
    head = struct.pack(">4I2I2I", *corner, HEIGHT, WIDTH, plane, planes, *pitch)
    head += struct.pack(">2I4dI", down, across, *spacing, 0.0, 0.0, depth)
    return GAIN_MAP, head + points.astype(">f4").tobytes()


def bad_list(points=(), boxes=()):
    flat = [n for row in (*points, *boxes) for n in row]
    return BAD_LIST, struct.pack(f">3I{len(flat)}I", 0, len(points), len(boxes), *flat)


def corrected(path, number, *opcodes, **options):
    write(path, tags=[opcode_tag(number, opcode_list(*opcodes))], **options)
    return read_raw(path, lens_corrections=True)


def expected_light(gain):
    """What the steps of a file are after gains, saturation clipped."""
    black = tiles(BLACK)
    return np.minimum((steps() - black) / (WHITE - black) * gain, 1)


def test_a_radial_vignette_by_its_polynomial(tmp_path):
    k, (cx, cy) = (0.5, 0.2, -0.1, 0.05, 0.02), (0.4, 0.55)
    frame = corrected(tmp_path / "a.dng", 3, vignette(*k, centre=(cx, cy)))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    from_centre = np.hypot(x - cx * (WIDTH - 1), y - cy * (HEIGHT - 1))
    r = from_centre / from_centre.max()
    gain = 1 + sum(c * r ** (2 * n) for n, c in enumerate(k, 1))
    np.testing.assert_allclose(linear(frame), expected_light(gain), atol=1e-5)
    plain = read_raw(tmp_path / "a.dng")
    np.testing.assert_array_equal(plain.mosaic, steps().astype(np.float32) / np.float32(FULL))


def interpolated(points):
    """Another's bilinear interpolation of a map (V, H) at the centres of pixels."""
    grid = [np.linspace(0, 1, n) for n in points.shape]
    at = np.meshgrid(*((np.arange(n) + 0.5) / n for n in (HEIGHT, WIDTH)), indexing="ij")
    return RegularGridInterpolator(grid, points)(np.stack(at, axis=-1))


def test_gain_maps_find_their_sites_of_the_mosaic(tmp_path):
    rng = np.random.default_rng(4)
    maps = rng.uniform(1, 2, (2, 2, 4, 5)).astype(np.float32)
    sites = list(np.ndindex(2, 2))
    opcodes = [gain_map(maps[site], corner=site, pitch=(2, 2)) for site in sites]
    frame, gain = corrected(tmp_path / "a.dng", 2, *opcodes), np.ones(LIGHT.shape)
    for y, x in sites:
        gain[y::2, x::2] = interpolated(maps[y, x])[y::2, x::2]
    np.testing.assert_allclose(linear(frame), expected_light(gain), atol=1e-5)
    # Of each colour.
    maps = rng.uniform(1, 2, (3, 4, 3)).astype(np.float32)
    frame = corrected(tmp_path / "a.dng", 3, gain_map(maps, planes=3))
    for (y, x), colour in zip(sites, (0, 1, 1, 2), strict=True):
        gain[y::2, x::2] = interpolated(maps[..., colour])[y::2, x::2]
    np.testing.assert_allclose(linear(frame), expected_light(gain), atol=1e-5)
    # One point is one gain; a plane that a mosaic lacks changes nothing.
    one = corrected(tmp_path / "b.dng", 2, gain_map([[1.5]]), gain_map([[9.0]], plane=1))
    np.testing.assert_allclose(linear(one), expected_light(1.5), atol=1e-5)


def test_corrections_are_turned_and_levelled_with_the_frame(tmp_path):
    code = (274, "H", 1, 6, True)
    data = opcode_list(vignette(1, 0, 0, 0, 0, centre=(0.0, 0.0)))
    write(tmp_path / "a.dng", tags=[opcode_tag(3, data), code])
    write(tmp_path / "b.dng", tags=[opcode_tag(3, data)])
    turned, lying = (read_raw(tmp_path / f"{n}.dng", lens_corrections=True) for n in "ab")
    np.testing.assert_array_equal(turned.mosaic, np.rot90(lying.mosaic, -1))


def test_bad_pixels_become_the_mean_of_their_colour(tmp_path):
    values = steps()
    boxes = [(10, 10, 16, 14), (40, 60, 48, 64)]
    bad = np.zeros(values.shape, bool)
    bad[[0, 20, 20], [0, 30, 32]] = True
    for top, left, bottom, right in boxes:
        bad[top:bottom, left:right] = True
    frame = corrected(tmp_path / "a.dng", 1, bad_list([(0, 0), (20, 30), (20, 32)], boxes), values=values)
    got = np.rint(frame.mosaic * FULL)
    np.testing.assert_array_equal(got[~bad], values[~bad])
    for y, x in ((0, 0), (20, 30), (12, 12)):
        near = (slice(max(y - 2, 0), y + 3, 2), slice(max(x - 2, 0), x + 3, 2))
        assert frame.mosaic[y, x] * FULL == pytest.approx(values[near][~bad[near]].mean(), abs=0.01)
    # In the middle of a rectangle nothing good is near: still a value of its colour.
    site = values[1::2, 1::2][~bad[1::2, 1::2]]
    assert site.min() <= got[47, 63] <= site.max()


@pytest.mark.filterwarnings("ignore::r2l.rawfile.RawFileWarning")
def test_a_constant_marks_bad_pixels(tmp_path):
    values = np.full(LIGHT.shape, 1000, np.uint16)
    values[7, 9] = values[30, 31] = 0
    frame = corrected(tmp_path / "a.dng", 1, (BAD_CONSTANT, struct.pack(">II", 0, 0)), values=values)
    assert (np.rint(frame.mosaic * FULL) == 1000).all()


def test_what_is_not_applied_is_named(tmp_path):
    with pytest.warns(RawFileWarning, match=r"not applied: WarpRectilinear, opcode 99$"):
        corrected(tmp_path / "a.dng", 3, (1, bytes(8)), (99, b""), vignette(0, 0, 0, 0, 0))
    with pytest.warns(RawFileWarning, match="carries none"):
        read_raw(write(tmp_path / "b.dng"), lens_corrections=True)
    (tmp_path / "more").mkdir()
    with pytest.warns(RawFileWarning, match=r"more.c\.dng: .*carries none"):
        read_raw(write(tmp_path / "more" / "c.dng"), lens_corrections=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corrected(tmp_path / "c.dng", 3, vignette(0, 0, 0, 0, 0))
        read_raw(tmp_path / "a.dng")  # not asked for: nothing to say
        read_raw(write(tmp_path / "d.dng"), lens_corrections=True)  # said of this folder already


_MAP = gain_map(np.ones((2, 2)))[1]


def with_sizes(down, across, depth):
    """A gain map that promises other numbers of points and planes than it holds."""
    sizes = struct.pack(">2I", down, across), struct.pack(">I", depth)
    return GAIN_MAP, _MAP[:32] + sizes[0] + _MAP[40:72] + sizes[1] + _MAP[76:]


HUGE = 2**32 - 1
DAMAGED = {
    "empty": (2, b""),
    "endless": (2, opcode_list(count=HUGE)),
    "more than are there": (2, opcode_list(gain_map([[1.0]]), count=3)),
    "many": (3, opcode_list(*[vignette(0, 0, 0, 0, 0)] * 200)),
    "cut": (2, opcode_list(gain_map(np.ones((4, 4))))[:-1]),
    "parameters cut": (3, opcode_list((VIGNETTE, bytes(20)))),
    "size beyond": (3, struct.pack(">5I", 1, VIGNETTE, 0, 0, HUGE)),
    "map that claims memory": (2, opcode_list(with_sizes(HUGE, HUGE, HUGE))),
    "map without points": (2, opcode_list(with_sizes(0, 0, 1))),
    "pitch 0": (2, opcode_list(gain_map([[1.0]], pitch=(0, 1)))),
    "gains nan": (2, opcode_list(gain_map([[np.nan]]))),
    "gains negative": (3, opcode_list(gain_map([[-1.0]]))),
    "gains infinite": (3, opcode_list(vignette(1e308, 1e308, 1e308, 0, 0))),
    "spacing nan": (2, opcode_list(gain_map(np.ones((2, 2)), spacing=(np.nan, 1)))),
    "centre far": (3, opcode_list(vignette(0, 0, 0, 0, 0, centre=(1e300, 0)))),
    "points that claim memory": (1, opcode_list((BAD_LIST, struct.pack(">3I", 0, HUGE, HUGE)))),
    "points outside": (1, opcode_list(bad_list([(HEIGHT, 0)]))),
    "boxes outside": (1, opcode_list(bad_list(boxes=[(0, 0, HUGE, 2)]))),
    "boxes inside out": (1, opcode_list(bad_list(boxes=[(9, 9, 3, 3)]))),
    "all bad": (1, opcode_list(bad_list(boxes=[(0, 0, HEIGHT, WIDTH)] * 50_000))),
    "wrong type": (3, (1, 2, 3)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_corrections_are_refused_at_once(tmp_path, name):
    number, data = DAMAGED[name]
    tag = opcode_tag(number, data) if isinstance(data, bytes) else (51022, "H", 3, data, True)
    path = write(tmp_path / "a.dng", tags=[tag])
    start = time.process_time()
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RawFileError, match=r"a\.dng.*damaged lens corrections"):
            read_raw(path, lens_corrections=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        read_raw(path)
    assert time.process_time() - start < 2
    assert peak < 40e6


def test_any_flipped_byte_is_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    whole = opcode_list(gain_map(np.ones((3, 3))), vignette(0.1, 0, 0, 0, 0))
    for _ in range(120):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=3):
            data[at] = rng.integers(256)
        path = write(tmp_path / "a.dng", tags=[opcode_tag(3, bytes(data))])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", RawFileWarning)
            try:
                frame = read_raw(path, lens_corrections=True)
                assert np.isfinite(frame.mosaic).all()
            except RawFileError:
                pass


@pytest.mark.filterwarnings("ignore::r2l.rawfile.RawFileWarning")
def test_a_folder_applies_them_and_other_files_say_that_they_have_none(tmp_path):
    photos = tmp_path / "photos"
    (photos / "cats").mkdir(parents=True)
    path = photos / "cats" / "a.dng"
    write(path, tags=[opcode_tag(3, opcode_list(gain_map([[1.5]], planes=3)))])
    plain, cache = read_raw(path), tmp_path / "cache"
    for asked in (False, True, False):
        data = RawFolder(photos, lens_corrections=asked, cache=cache)
        raw = read_raw(path, lens_corrections=asked).mosaic
        np.testing.assert_array_equal(data[0]["raw"][0], raw)
        assert (asked is True) == (raw.mean() > 1.1 * plain.mosaic.mean())
    trained = open_data(Options(dataset="RawFolder", root=str(photos), lens_corrections=True))[0]["raw"][0]
    np.testing.assert_array_equal(trained, read_raw(path, lens_corrections=True).mosaic)
    refused("lens_corrections", Options, dataset="SyntheticDrone", lens_corrections=True)
    np.save(tmp_path / "a.npy", plain.mosaic)
    (photos / "a.bin").write_bytes(steps().tobytes())
    for name, kind in (("a.npy", None), ("photos/a.bin", RawLayout(WIDTH, HEIGHT, 16))):
        with pytest.warns(RawFileWarning, match="not applied, only those of DNGs"):
            read_raw(tmp_path / name, DRONE, kind, lens_corrections=True)


@pytest.mark.filterwarnings("ignore::r2l.rawfile.RawFileWarning")
def test_on_the_command_line(tmp_path):
    values = (tiles(BLACK) + 200).astype(np.uint16)
    values[20, 31] = 4000
    path = write(tmp_path / "a.dng", values, tags=[opcode_tag(3, opcode_list(gain_map([[2.0]], planes=3)))])
    means, spread, target = [], [], str(tmp_path / "a.png")
    for options in ([], ["--lens_corrections"], ["--defects", "0.1"]):
        run = invoke("develop", path, "-o", target, "--force", *options)
        assert run.exit_code == 0, run.output
        picture = np.asarray(Image.open(target)).astype(float)
        means.append(np.median(picture))
        spread.append(np.ptp(picture[..., 1]))
    assert means[1] == pytest.approx(means[0] * 2 ** (1 / 2.2), rel=0.02)
    assert spread[0] > 50 > 3 > spread[2]


# --- on the sensor ---
def test_defects_are_found_as_scipy_finds_them_and_nothing_else_moves():
    torch.manual_seed(0)
    raw = apply_levels(0.2 + 0.6 * torch.rand(2, 1, 24, 32), DRONE)
    raw[0, 0, 5, 9], raw[1, 0, 0, 0], raw[1, 0, 23, 31] = 1.0, 0.0, 1.0
    with unchanged(raw):
        got = correct_defects(raw, DRONE, 0.05)
    around = np.ones((3, 3), bool)
    around[1, 1] = False
    where = {"footprint": around, "mode": "mirror"}
    step = 0.05 * DRONE.span
    found = 0
    for n, y, x in np.ndindex(2, 2, 2):
        plane, fixed = (t[n, 0, y::2, x::2].numpy() for t in (raw, got))
        high, low = ndimage.maximum_filter(plane, **where), ndimage.minimum_filter(plane, **where)
        median = ndimage.generic_filter(plane, np.median, **where)
        bad = (plane > high + step) | (plane < low - step)
        found += bad.sum()
        np.testing.assert_allclose(fixed, np.where(bad, median, plane), atol=1e-6)
    assert found >= 3
    refused("0 or more", correct_defects, raw, DRONE, -1)
    raw = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: correct_defects(x, DRONE, 0.05), raw)


def drifted(kind, severity=5, level=0.5, camera=DRONE, n=4, **options):
    raw = apply_levels(torch.full((n, 1, 128, 128), level), camera)
    moved = drift_sensor(raw, camera, kind, severity, noise=DRONE_NOISE, **options)
    return subtract_black_level(moved, camera.black_level, camera.white_level)


@pytest.mark.parametrize(("kind", "value"), [("hot_pixels", 1.0), ("dead_pixels", 0.0)])
def test_defects_are_so_many_the_sensors_own_and_corrected(kind, value):
    light = drifted(kind)
    bad = (light - value).abs() < 1e-3
    assert bad.float().mean().item() == pytest.approx(0.05, rel=0.1)
    assert (bad == bad[:1]).all()
    assert not torch.equal(bad, (drifted(kind, seed=1) - value).abs() < 1e-3)
    few = drifted(kind, 2)
    fixed = correct_defects(apply_levels(few, DRONE), DRONE, 0.1)
    wrong = (fixed - apply_levels(torch.full_like(few, 0.5), DRONE)).abs() > 1e-3
    assert wrong.float().mean() < 0.05 * 0.001


@pytest.mark.parametrize(("kind", "axis"), [("row_noise", -2), ("column_noise", -1)])
def test_lines_have_offsets_of_that_deviation_in_all_frames(kind, axis):
    light = drifted(kind, 4)
    line = light.mean(dim=-1 if axis == -2 else -2)[:, 0]
    assert line[0].std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(line[0], line[3])
    assert light.std(dim=-1 if axis == -2 else -2).max() < 1e-3


def test_vignetting_takes_light_from_the_corners_and_leaves_its_noise():
    light = drifted("vignetting", 5, n=256)[:, 0]
    corner, centre = light[:, :2, :2], light[:, 60:68, 60:68]
    assert falloff(light, 0.8)[0, 0].item() == pytest.approx(0.2)
    assert centre.mean().item() == pytest.approx(0.5, rel=0.01)
    mean = 0.5 * falloff(light, 0.8)[:2, :2].mean().item()
    assert corner.mean().item() == pytest.approx(mean, rel=0.02)
    # Thinned electrons of a noiseless frame: a binomial number's variance, (1 - share) of a Poisson one's.
    read = noise_variance(0.0, DRONE_NOISE, DRONE)
    shot = noise_variance(mean, DRONE_NOISE, DRONE) - read
    assert corner.var(dim=0).mean().item() == pytest.approx(0.8 * shot + read, rel=0.15)


def test_colour_shading_is_reds_by_position():
    light = drifted("colour_shading", 5, camera=MICROSCOPE, n=64).mean(dim=0)[0]
    corner = [light[y:8:2, x:8:2].mean().item() for y, x in ((0, 0), (0, 1), (1, 1))]
    share = falloff(light, 1.0)[:8, :8].mean().item()
    for got, part in zip(corner, (1, 0.5, 0), strict=True):
        assert got == pytest.approx(0.5 * (1 - 0.4 * part * (1 - share)), rel=0.02)


def test_what_a_sensor_was_given_is_measured():
    rng = np.random.default_rng(7)
    ramp = 0.3 + 0.2 * np.sin(np.linspace(0, 6, 256))[:, None] * np.cos(np.linspace(0, 5, 256))
    noisy = ramp + 0.02 * rng.standard_normal((256, 256))
    raw = apply_levels(torch.tensor(noisy, dtype=torch.float32)[None, None], DRONE)
    clean = measure_defects(raw, DRONE)
    assert clean["defective pixels"] == 0
    assert max(clean["row noise"], clean["column noise"]) < 0.001
    for kind, name in (("row_noise", "row noise"), ("column_noise", "column noise")):
        measured = measure_defects(drift_sensor(raw, DRONE, kind, 3), DRONE)
        other = {"row noise", "column noise"} - {name}
        assert measured[name] == pytest.approx(0.01, rel=0.25)
        assert measured[other.pop()] < 0.001
    hot = measure_defects(drift_sensor(raw, DRONE, "hot_pixels", 3), DRONE, 0.2)
    assert hot["defective pixels"] == pytest.approx(0.005, rel=0.2)


# --- corrected before a pipeline ---
def test_lines_are_taken_off_and_the_scene_stays():
    rng = np.random.default_rng(0)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, 96),) * 2, indexing="ij")
    light = 0.3 + 0.2 * x * y + 0.2 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05)
    light = light + 0.002 * torch.from_numpy(rng.standard_normal((96, 96))).float()
    clean = apply_levels(light[None, None], DRONE)
    noisy = add_line_noise(add_line_noise(light, 0.02, -2, rng), 0.02, -1, rng)
    noisy = apply_levels(noisy[None, None].float(), DRONE)
    fixed = correct_lines(noisy)
    told = measure_defects(fixed, DRONE)
    assert measure_defects(noisy, DRONE)["row noise"] > 0.015
    assert max(told["row noise"], told["column noise"]) < 0.003
    assert (fixed - clean).std() < 0.4 * (noisy - clean).std()
    assert (correct_lines(clean) - clean).abs().max() < 0.02 * DRONE.span
    torch.testing.assert_close(fixed.mean(), noisy.mean(), rtol=0, atol=2e-3)
    small = clean[..., :16, :16].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda raw: correct_lines(raw, 3), small)
    for lines in (4, 99):
        refused(f"lines is {lines}, .*odd number up to 95", correct_lines, clean, lines)


def test_shading_is_undone():
    light = torch.full((1, 1, 32, 48), 0.25)
    shaded = apply_levels(light * falloff(light, 0.6), MICROSCOPE)
    fixed = correct_shading(shaded, MICROSCOPE, 0.6)
    torch.testing.assert_close(fixed, apply_levels(light, MICROSCOPE), rtol=0, atol=1e-5)
    assert correct_shading(apply_levels(4 * light, DRONE), DRONE, 0.6).max() <= DRONE.white_level
    given = shaded[..., :4, :6].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda raw: correct_shading(raw, MICROSCOPE, 0.6), given)
