"""Properties of the way backwards: what theory and the inverse functions say must hold."""

import numpy as np
import pytest
import torch

from r2l.camera import CFA, DRONE, MICROSCOPE, Camera
from r2l.sensor import (
    DRONE_NOISE,
    MICROSCOPE_NOISE,
    NoiseModel,
    _add_shot_noise,
    apply_levels,
    invert_white_balance,
    mosaic,
    quantise,
    record,
    unprocess,
)
from tests.reference import noise_variance

PAIRS = {"microscope": (MICROSCOPE, MICROSCOPE_NOISE), "drone": (DRONE, DRONE_NOISE)}
every_sensor = pytest.mark.parametrize(("camera", "noise"), PAIRS.values(), ids=PAIRS)


def camera_like(camera, **changes):
    return Camera.from_dict({**camera.to_dict(), **changes})


def half_size(raw, camera):
    """Develop (1, H, W) without any interpolation: each 2x2 tile becomes one pixel, linear sRGB."""
    sites = [
        (raw[0, p // 2 :: 2, p % 2 :: 2] - black) / (camera.white_level - black)
        for p, black in enumerate(camera.black_level)
    ]
    colours = [sum(sites[p] for p in camera.cfa.positions(c)) for c in range(3)]
    camera_rgb = torch.stack([colours[0], colours[1] / 2, colours[2]])
    balanced = camera_rgb * torch.tensor(camera.white_balance)[:, None, None]
    return torch.einsum("ij,jhw->ihw", torch.tensor(camera.colour_matrix), balanced)


@pytest.fixture
def picture():
    """A display image of 6x8 flat 2x2 tiles, of colours that both cameras can see."""
    tiles = 0.3 + 0.4 * torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    grey = tiles.mean(0, keepdim=True)
    return (grey + 0.3 * (tiles - grey)).repeat_interleave(2, 1).repeat_interleave(2, 2)


@pytest.mark.parametrize("cfa", CFA)
def test_mosaic_keeps_one_colour_a_site(cfa):
    sites = mosaic(torch.tensor([10.0, 20.0, 30.0]).reshape(3, 1, 1).expand(2, 3, 6, 8), cfa)
    assert sites.shape == (2, 1, 6, 8)
    tile = 10.0 * (torch.tensor(cfa.value) + 1).reshape(2, 2)
    torch.testing.assert_close(sites, tile.repeat(3, 4).expand(2, 1, 6, 8))


@pytest.mark.parametrize("cfa", CFA)
@pytest.mark.parametrize("camera", [MICROSCOPE, DRONE], ids=["microscope", "drone"])
def test_way_back_and_forth(camera, cfa, picture):
    camera = camera_like(camera, cfa=cfa.name)
    raw = apply_levels(mosaic(unprocess(picture, camera), cfa), camera)
    developed = half_size(raw, camera).clamp(0, 1) ** (1 / 2.2)
    torch.testing.assert_close(developed, picture[:, ::2, ::2], atol=1e-4, rtol=0)


def test_negative_gains_of_the_microscope_cancel(picture):
    assert (unprocess(picture, MICROSCOPE) > 0).all()
    white = unprocess(torch.ones(3, 2, 2), MICROSCOPE)[:, 0, 0]
    # An empty field of the published set lies about there: its mosaic's mean is .57 .14 .07.
    assert torch.allclose(white, torch.tensor([0.68, 0.18, 0.11]), atol=0.06)


@pytest.mark.parametrize("shape", [(4, 6), (5, 7)])
def test_levels_go_by_position(shape):
    camera = camera_like(DRONE, black_level=[0.1, 0.2, 0.3, 0.4], white_level=0.9)
    black, white = (apply_levels(torch.full((1, *shape), v), camera)[0] for v in (0.0, 1.0))
    for position, level in enumerate(camera.black_level):
        site = (slice(position // 2, None, 2), slice(position % 2, None, 2))
        assert torch.allclose(black[site], torch.tensor(level))
    assert torch.allclose(white, torch.tensor(0.9))


@every_sensor
@pytest.mark.parametrize("level", [0.0005, 0.01, 0.1, 0.6])
def test_noise_agrees_with_theory(camera, noise, level):
    # A camera without colours and with some black, so that nothing is clipped at the dark end.
    camera = camera_like(camera, black_level=[0.0625] * 4)
    light, rng = torch.full((3, 512, 512), level), np.random.default_rng(int(1e4 * level))
    raw = record(light, camera, noise, rng=rng).double()
    light = (raw - 0.0625) / (1 - 0.0625)
    expected = noise_variance(level, noise, camera)
    count = light.numel()
    assert abs(light.mean() - level) < 4 * (expected / count) ** 0.5 + 1e-5
    # The variance of a sample variance is 2 / n, and 1 / electrons more for few electrons.
    few = 1 / max(level * noise.full_well(camera), 1)
    assert light.var().item() / expected == pytest.approx(1, abs=5 * ((2 + few) / count) ** 0.5)


@pytest.mark.parametrize("mean", [0.3, 5.0, 99.0, 101.0, 5000.0])
def test_shot_noise_is_whole_electrons_with_the_variance_of_the_mean(mean):
    electrons = _add_shot_noise(torch.full((400, 400), mean), np.random.default_rng(3)).double()
    assert (electrons >= 0).all()
    assert torch.equal(electrons, electrons.round())
    assert electrons.mean().item() == pytest.approx(mean, abs=5 * (mean / 160_000) ** 0.5)
    assert electrons.var().item() == pytest.approx(mean, rel=5 * (3.5 / min(mean, 1) / 160_000) ** 0.5)


def test_published_gain_in_electrons():
    assert DRONE_NOISE.full_well(DRONE) == pytest.approx(0.9375 * 4095 / 0.528, rel=1e-3)
    assert MICROSCOPE_NOISE.full_well(MICROSCOPE) == pytest.approx(30_146, rel=1e-3)


@pytest.mark.parametrize("bits", [8, 12, 14, 16])
def test_quantisation_steps(bits):
    raw = torch.linspace(0, 1, 5000)
    numbers = quantise(raw, bits) * 65535
    assert torch.allclose(numbers, numbers.round(), atol=5e-3)
    assert (numbers.round() % 2 ** (16 - bits) == 0).all()
    assert numbers.max().round() == (2**bits - 1) * 2 ** (16 - bits)
    assert len(numbers.round().unique()) == min(2**bits, 5000)
    torch.testing.assert_close(quantise(quantise(raw, bits), bits), quantise(raw, bits))


def test_light_stays_in_range():
    camera = camera_like(DRONE, white_level=0.8)
    bright = record(torch.full((3, 8, 8), 3.0), camera, DRONE_NOISE, rng=np.random.default_rng(0))
    assert bright.max() == bright.min()
    assert bright.max().item() == pytest.approx(0.8, abs=1 / 4096)
    dark = record(torch.full((3, 8, 8), -0.1), MICROSCOPE, MICROSCOPE_NOISE, rng=np.random.default_rng(0))
    assert 0 <= dark.min() <= dark.max() < 0.001


@every_sensor
def test_intensity_is_fewer_photons(camera, noise):
    scene, dark = torch.full((3, 256, 256), 0.2), apply_levels(torch.zeros(1, 256, 256), camera)
    none, few, many = (
        record(scene, camera, noise, intensity=intensity, rng=np.random.default_rng(1)) - dark
        for intensity in (0.0, 0.05, 1.0)
    )
    assert none.mean().item() == pytest.approx(0, abs=1e-4)
    assert (few.mean() / many.mean()).item() == pytest.approx(0.05, rel=0.02)
    assert few.mean() / few.std() < many.mean() / many.std() / 4  # shot noise alone: 1 / sqrt(20)


def test_recording_repeats_with_the_seed_and_leaves_the_rest_alone():
    scene = torch.rand(2, 3, 8, 8)
    before, state, numpy_state = scene.clone(), torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    one, same, other = (record(scene, DRONE, DRONE_NOISE, rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.shape == (2, 1, 8, 8)
    assert one.dtype == torch.float32
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(scene, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_gradients_pass_where_there_is_no_noise(picture):
    picture = picture[..., :4, :4].double().requires_grad_()
    back = lambda x: apply_levels(mosaic(unprocess(x, DRONE), CFA.GBRG), DRONE)  # noqa: E731
    assert torch.autograd.gradcheck(back, picture)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"\(\.\.\., 3, H, W\)"):
        mosaic(torch.zeros(1, 8, 8), CFA.RGGB)
    with pytest.raises(ValueError, match="intensity"):
        record(torch.zeros(3, 8, 8), DRONE, DRONE_NOISE, intensity=-1, rng=np.random.default_rng())
    with pytest.raises(ValueError, match="no inverse"):
        invert_white_balance(torch.zeros(3, 8, 8), camera_like(DRONE, white_balance=[1, 0, 1]))
    singular = camera_like(DRONE, colour_matrix=[[1, 1, 1]] * 3)
    with pytest.raises(RuntimeError):
        unprocess(torch.zeros(3, 8, 8), singular)
    for wrong in ({"gain": 0}, {"read_noise": -1}, {"bits": 17}):
        with pytest.raises(ValueError, match="expected gain"):
            NoiseModel(**{"gain": 1, "read_noise": 1, "bits": 12, **wrong})
