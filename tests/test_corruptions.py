"""Corruptions and sensor drift: definitions against independent code, chance, sizes, matching."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import color, filters

from r2l.camera import DRONE, MICROSCOPE
from r2l.datasets import SyntheticMicroscopy, develop_views
from r2l.drift import PUBLISHED_CORRUPTIONS, corrupt, drift_sensor, published_corruptions
from r2l.drift.corruption_benchmark import _match_amount, _pipeline_distance, distances
from r2l.drift.corruptions import CORRUPTIONS, name_corruptions
from r2l.drift.sensor_drift import SENSOR_DRIFTS
from r2l.isp.functional import subtract_black_level
from r2l.sensor import DRONE_NOISE, NoiseModel, apply_levels, record
from tests.common import refused, unchanged
from tests.reference import noise_variance


@pytest.fixture(scope="module")
def images():
    """Smooth colours with a grey, a black and a white corner: (6, 3, 48, 48)."""
    coarse = torch.from_numpy(np.random.default_rng(0).random((6, 3, 6, 6), dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse, (48, 48), mode="bilinear")
    fine[:, :, :6, :6], fine[:, :, -6:, -6:], fine[:, :, :6, -6:] = 0.5, 0.0, 1.0
    return fine


def hsv(images):
    return np.stack([color.rgb2hsv(i) for i in images.permute(0, 2, 3, 1).double().numpy()])


def rgb(planes):
    return torch.from_numpy(np.stack([color.hsv2rgb(p) for p in planes])).permute(0, 3, 1, 2)


def test_the_published_ten_are_those_of_the_published_table():
    assert ("identity", *PUBLISHED_CORRUPTIONS) == tuple(published_corruptions("drone").columns)
    for name, ratio in (("microscopy", 10.3), ("drone", 3.9)):
        table = published_corruptions(name)
        drop = (table["identity"].to_numpy()[:, None] - table.iloc[:, 1:]).to_numpy().mean()
        assert drop / {"microscopy": 0.0236, "drone": 0.0461}[name] == pytest.approx(ratio, abs=0.05)


BRIGHTNESS = 0.05, 0.1, 0.15, 0.2, 0.3
SATURATION = (0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_and_saturation_are_those_of_hsv(images, severity):
    brighter, stronger = hsv(images), hsv(images)
    brighter[..., 2] += BRIGHTNESS[severity - 1]
    stronger[..., 1] = stronger[..., 1] * SATURATION[severity - 1][0] + SATURATION[severity - 1][1]
    for kind, planes in (("brightness", brighter), ("saturate", stronger)):
        got = corrupt(images, kind, severity).double()
        torch.testing.assert_close(got, rgb(planes.clip(0, 1)), atol=1e-5, rtol=0)


def test_blur_contrast_and_jpeg_agree_with_other_libraries(images):
    rows = images.permute(0, 2, 3, 1).numpy()
    blurred = np.stack([filters.gaussian(i, sigma=0.7, channel_axis=-1) for i in rows])
    got = corrupt(images, "gaussian_blur", 3).permute(0, 2, 3, 1)
    np.testing.assert_allclose(got, blurred, atol=1e-5)
    means = rows.mean(axis=(1, 2), keepdims=True)
    got = corrupt(images, "contrast", 5).permute(0, 2, 3, 1)
    np.testing.assert_allclose(got, (rows - means) * 0.15 + means, atol=1e-5)
    file = io.BytesIO()
    Image.fromarray((rows[0] * 255).round().astype(np.uint8)).save(file, "JPEG", quality=58)
    theirs = np.asarray(Image.open(file)) / 255
    got = corrupt(images[:1], "jpeg_compression", 3)[0].permute(1, 2, 0).numpy()
    assert np.abs(got - theirs).max() <= 3 / 255


@pytest.mark.parametrize(
    ("kind", "variance"),
    [
        ("gaussian_noise", 0.08**2),
        ("speckle_noise", (0.4 * 0.12) ** 2),
        ("shot_noise", 0.4 / 100),
        ("impulse_noise", 0.015 * (0.4**2 + 0.6**2)),  # .015 of black and of white each
    ],
)
def test_noises_have_the_moments_of_their_definition(kind, variance):
    grey = torch.full((4, 3, 64, 64), 0.4)
    change = corrupt(grey, kind, 3) - grey
    assert change.square().mean().item() == pytest.approx(variance, rel=0.06)
    assert abs(change.mean().item()) < 0.005
    assert corrupt(grey, "impulse_noise", amount=99).mean() == pytest.approx(0.5, abs=0.02), (
        "one half is white"
    )


def test_zoom_keeps_the_centre_and_elastic_keeps_what_is_flat(images):
    cross = torch.zeros(1, 3, 49, 49)
    cross[..., 24, 24] = 1
    assert corrupt(cross, "zoom_blur", 5)[0, 0].argmax() == 24 * 49 + 24
    ramp = torch.linspace(0, 1, 65).expand(1, 3, 65, 65)
    got = corrupt(ramp, "zoom_blur", 5)[0, 0, 32]
    want = 0.5 + (ramp[0, 0, 0].numpy() - 0.5) * (1 + (1 / np.linspace(1, 1.25, 26)).sum()) / 27
    np.testing.assert_allclose(got, want, atol=1e-5)
    flat = torch.full((2, 3, 40, 40), 0.3)
    torch.testing.assert_close(corrupt(flat, "elastic_transform", 1), flat)
    assert (corrupt(images, "elastic_transform", 1) - images).abs().mean() > 0.01


def rain(image, severity):
    """Dark drops at random places, more of them as severity rises."""
    drops = torch.rand(image.shape[-2:]) < 0.02 * severity
    return torch.where(drops, image * np.random.uniform(0.2, 0.4), image)  # noqa: NPY002


@pytest.mark.parametrize("kind", [*CORRUPTIONS, rain])
def test_chance_belongs_to_the_image_and_inputs_stay(images, kind):
    with unchanged(images):
        together = corrupt(images, kind, 3, seed=4)
        alone = corrupt(images[[5, 2]], kind, 3, seed=4, ids=[5, 2])
    torch.testing.assert_close(alone, together[[5, 2]])
    assert together.dtype == torch.float32
    assert 0 <= together.min() <= together.max() <= 1
    assert not torch.equal(together, images)
    assert torch.equal(corrupt(images, kind, 3, amount=0), images)
    if kind is rain or "noise" in kind or kind == "elastic_transform":
        assert not torch.equal(corrupt(images, kind, 3, seed=5), together)


def test_more_of_a_corruption_moves_images_further(images):
    for kind in CORRUPTIONS:
        steps = [distances(corrupt(images, kind, 3, amount=a), images, "l2").mean() for a in (0.25, 1, 2)]
        assert steps == sorted(steps), kind
        assert steps[0] < steps[-1], kind


def test_only_lengths_grow_with_the_image(images):
    large = torch.nn.functional.interpolate(images, (64, 80), mode="bilinear")
    for kind in CORRUPTIONS:
        published, grown = (corrupt(large, kind, 3, scale=scale) for scale in ("published", "image"))
        assert torch.equal(published, grown) == (kind not in ("gaussian_blur", "elastic_transform")), kind
        small = large[..., :32, :32]
        assert torch.equal(corrupt(small, kind, 3, scale="image"), corrupt(small, kind, 3)), kind
    rows = large.permute(0, 2, 3, 1).numpy()
    blurred = np.stack([filters.gaussian(i, sigma=1.4, channel_axis=-1) for i in rows])
    got = corrupt(large, "gaussian_blur", 3, scale="image").permute(0, 2, 3, 1)
    np.testing.assert_allclose(got, blurred, atol=1e-5)


@pytest.mark.parametrize("distance", ["psnr", "ssim", "l2"])
def test_matched_corruptions_have_the_distance_that_was_asked_for(images, distance):
    target = {"psnr": 30.0, "ssim": 0.05, "l2": 1e-3}[distance]
    for kind in ("gaussian_noise", "gaussian_blur", "contrast", "elastic_transform", "shot_noise"):
        amount, reached = _match_amount(images, kind, target, distance, scale="image")
        again = corrupt(images, kind, 3, amount=amount, scale="image")
        assert reached, kind
        assert distances(again, images, distance).mean() == pytest.approx(target, rel=0.02), kind


def test_images_that_have_not_changed_do_not_lead_a_mean_and_what_is_out_of_reach_is_told(images):
    changed = images.clone()
    changed[0] = changed[0] * 0.9
    assert distances(changed, images).mean() < distances(images, images).mean() == 100
    assert not _match_amount(torch.ones_like(images), "brightness", 20.0)[1]


def test_mistakes_in_corruptions_are_named(images):
    refused("jpeg_compression", corrupt, images, "snow")
    refused("published, image", corrupt, images, "contrast", scale="large")
    refused("1, 2, 3, 4 or 5", corrupt, images, "contrast", 6)
    refused("severity is 6", corrupt, images, torch.sqrt, 6)
    refused("amount", corrupt, images, "contrast", amount=-1)
    refused("N, 3, H, W", corrupt, images[:, :1], "contrast")
    refused("keep the shape", corrupt, images, lambda image: image[..., 1:])
    refused("unknown distance", _match_amount, images, "contrast", 30, distance="lpips")
    refused("nothing to match", _match_amount, images, "contrast", 0.0)


def test_pipeline_distance_averages_the_others():
    codes = ("bi,s,me", "me,u,ga", "ma,s,me")
    views = develop_views(SyntheticMicroscopy(3, 0, size=16), codes, progress=False)
    own = views.images[codes[0]]
    want = [(views.images[c] - own).square().mean().item() for c in codes[1:]]
    assert _pipeline_distance(views, codes[0], "l2") == pytest.approx(np.mean(want))
    refused("no other", _pipeline_distance, replace(views, images={codes[0]: own}), codes[0])


# --- the sensor ---
def flat(level, camera=DRONE, n=2, side=64):
    return apply_levels(torch.full((n, 1, side, side), level), camera)


def light_of(raw, camera=DRONE):
    return subtract_black_level(raw, camera.black_level, camera.white_level)


def recorded(level, camera=DRONE, noise=DRONE_NOISE):
    return record(torch.full((8, 3, 64, 64), level), camera, noise, rng=np.random.default_rng(3))


@pytest.mark.parametrize(("severity", "share"), [(2, 0.5), (4, 0.1)])
def test_less_exposure_has_the_mean_and_noise_of_a_real_one(severity, share):
    dim = light_of(drift_sensor(recorded(0.5), DRONE, "exposure", severity))
    real = noise_variance(0.5 * share, DRONE_NOISE, DRONE)
    assert dim.mean().item() == pytest.approx(0.5 * share, rel=0.005)
    assert dim.var().item() == pytest.approx(real, rel=0.06)
    dark = recorded(0.0)
    darker = light_of(drift_sensor(dark, DRONE, "exposure", severity))
    assert abs(darker.mean() - share * light_of(dark).mean()) < 1e-5, "less of no light is none"


def test_noise_bits_and_levels_do_what_their_name_says():
    assert light_of(drift_sensor(flat(0.4), DRONE, "noise", 4)).std().item() == pytest.approx(0.02, rel=0.05)
    ramp = apply_levels(torch.linspace(0, 1, 4096).reshape(1, 1, 64, 64), DRONE)
    assert len(drift_sensor(ramp, DRONE, "bit_depth", 5).unique()) <= 16
    black = light_of(drift_sensor(flat(0.4), DRONE, "black_level", 5))
    assert black.mean().item() == pytest.approx(0.45, abs=1e-3)
    white = light_of(drift_sensor(ramp, DRONE, "white_level", 5))
    assert white.max().item() == pytest.approx(0.5, abs=1e-3)
    below = light_of(ramp) < 0.49
    torch.testing.assert_close(white[below], light_of(ramp)[below], atol=1e-3, rtol=0)


def test_white_balance_moves_red_and_blue_apart_by_position():
    warm = light_of(drift_sensor(flat(0.4, MICROSCOPE), MICROSCOPE, "white_balance", 5), MICROSCOPE)
    assert MICROSCOPE.cfa.value == (0, 1, 1, 2)
    want = torch.tensor([[0.56, 0.4], [0.4, 0.4 / 1.4]]).repeat(32, 32).expand_as(warm)
    torch.testing.assert_close(warm, want, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", SENSOR_DRIFTS)
def test_sensor_chance_belongs_to_the_frame_and_frames_stay(kind):
    raw = recorded(0.4)[:3]
    with unchanged(raw):
        together = drift_sensor(raw, DRONE, kind, 4, seed=2)
        alone = drift_sensor(raw[[2]], DRONE, kind, 4, seed=2, ids=[2])
    assert torch.equal(alone, together[[2]])
    assert 0 <= together.min() <= together.max() <= DRONE.white_level
    assert drift_sensor(raw[:0], DRONE, kind).shape == (0, *raw.shape[1:])


def test_mistakes_in_sensor_drift_are_named():
    raw = flat(0.4)
    own = replace(DRONE, name="own")
    refused("white_balance", drift_sensor, raw, DRONE, "dust")
    refused("1, 2, 3, 4 or 5", drift_sensor, raw, DRONE, "noise", 0)
    refused("N, 1, H, W", drift_sensor, raw[0], DRONE, "noise")
    refused("NoiseModel", drift_sensor, raw, own, "noise")
    assert drift_sensor(raw, own, "noise", noise=NoiseModel(1.0, 2.0, 12)).shape == raw.shape


def test_a_function_of_ones_own_is_a_corruption(tmp_path, monkeypatch):
    images = torch.rand(6, 3, 16, 16)
    together = corrupt(images, rain, 3, seed=4)
    moved = [distances(corrupt(images, rain, s, seed=4), images, "l2").mean() for s in (1, 3, 5)]
    assert moved == sorted(moved)
    torch.testing.assert_close(corrupt(images, rain, 3, amount=0.5, seed=4), (images + together) / 2)
    assert _match_amount(images, rain, 0.5 * float(distances(together, images, "l2").mean()), "l2")[1]
    grey = lambda image: image.mean(1, keepdim=True).expand_as(image)  # noqa: E731
    assert torch.equal(corrupt(images, grey)[0, 0], corrupt(images, grey)[0, 2])
    (tmp_path / "own_weather.py").write_text("def fog(image):\n    return image * 0.5 + 0.5\n")
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(corrupt(images, "own_weather:fog"), images * 0.5 + 0.5)
    assert list(name_corruptions([rain, "contrast"])) == ["rain", "contrast"]
    for nameless in ([grey], ["contrast", "contrast"], [print, print]):
        refused(r"give .name: function", name_corruptions, nameless)
