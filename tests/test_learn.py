"""A camera's pipeline learned from its own pictures, against cameras whose processing is known."""

import io
from dataclasses import replace

import numpy as np
import pytest
import rawpy
import skimage.color
import torch
from PIL import Image
from typer.testing import CliRunner

from r2l.camera import CFA, DRONE
from r2l.cli import app
from r2l.datasets import SyntheticDrone
from r2l.isp import StaticISP, develop_all, load_isp, save_isp, stage_gradients
from r2l.isp.functional import gamma_correct
from r2l.isp.learned import LearnedISP, apply_tone_curve, control_points, to_steps
from r2l.learn import AlignmentError, align, learn_pipeline, open_picture
from r2l.learn.colours import ciede2000, lab
from r2l.rawfile import RawFrame, read_raw, write_dng
from r2l.sensor import DRONE_NOISE, record, unprocess
from r2l.viz import plot_learned
from tests.common import CAMERAS, drawn, gradcheck_parameters, refused

CAMERA = replace(DRONE, cfa=CFA.GRBG)
METHODS = pytest.mark.parametrize("method", ["bilinear", "malvar2004", "menon2007"])


def scene(seed, height=480, width=640):
    """Coloured plates with edges, gradients and texture: display domain (3, H, W)."""
    rng = np.random.default_rng(seed)
    image = np.full((3, height, width), 0.4)
    down, across = np.mgrid[0:height, 0:width]
    for _ in range(160):
        y, x, h, w = (int(rng.integers(n)) for n in (height, width, 90, 120))
        colour = rng.uniform(0.03, 0.95) * rng.uniform(0.55, 1, (3, 1, 1))
        plate = slice(y, y + h + 20), slice(x, x + w + 20)
        y, x = down[plate], across[plate]
        wave = rng.uniform(0, 0.15) * np.sin(rng.uniform(0, 0.9) * y + rng.uniform(0, 0.9) * x)
        image[:, *plate] = colour * (1 + wave)
    return torch.from_numpy(image.clip(0.01, 0.97)).float()


def recorded(light, camera, seed):
    return RawFrame(record(light, camera, DRONE_NOISE, rng=np.random.default_rng(seed))[0].numpy(), camera)


def expose(seed):
    return recorded(0.8 * unprocess(scene(seed), CAMERA), CAMERA, seed)


def hidden_camera():
    """A processing unlike the start in every number, with a contrasty curve."""
    isp = LearnedISP(CAMERA, "malvar2004")
    x = (torch.arange(34.0) - 0.5) / 32
    curve = x + 0.12 * torch.sin(2 * np.pi * x.clamp(0, 1)) * -1 + 0.1 * x * (1.2 - x)
    sharpen = torch.zeros(5, 5)
    sharpen[2, 2], sharpen[1:4, 1:4] = 0.0, -0.06
    sharpen[2, 2] = 1 - (sharpen.sum() - sharpen[2, 2])
    with torch.no_grad():
        isp.white_balance.copy_(torch.tensor([2.5, 1.0, 2.0]))
        isp.colour_matrix.copy_(torch.tensor([[1.7, -0.5, -0.2], [-0.25, 1.6, -0.35], [0.0, -0.5, 1.5]]))
        isp.tone_curve.copy_(to_steps(curve.expand(3, -1)))
        isp.sharpening_kernel.copy_(sharpen)
    return isp


def as_jpeg(image, quality=95):
    """Return a picture as a JPEG's decoder gives it, and its bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer)), buffer.getvalue()


@torch.inference_mode()
def shoot(isp, frame):
    return np.rint(255 * isp(frame.tensor())[0].permute(1, 2, 0).numpy()).astype(np.uint8)


@pytest.fixture(scope="module")
def pair():
    frame = expose(0)
    return frame, as_jpeg(shoot(hidden_camera(), frame))[0]


@pytest.fixture(scope="module")
def learned(pair):
    return learn_pipeline([pair])


def test_the_figure_has_a_bar_a_pipeline(learned):
    curves, scores = drawn(plot_learned(learned)).axes
    assert {text.get_text() for text in scores.get_yticklabels()} == set(learned.scores.index)
    assert [line.get_label() for line in curves.lines] == ["R", "G", "B", "gamma 2.2"]


def test_a_known_camera_is_found(learned):
    isp, truth = learned.isp, hidden_camera()
    assert learned.scores.at["learned", "psnr"] > 35
    assert learned.gain > 8
    assert learned.scores["ciede2000"].idxmin() == "learned"
    assert len(learned.scores) == 13
    assert isp.demosaic == truth.demosaic
    torch.testing.assert_close(isp.white_balance, truth.white_balance, rtol=0.05, atol=0)
    torch.testing.assert_close(isp.colour_matrix, truth.colour_matrix, rtol=0, atol=0.1)
    grey = torch.linspace(0.02, 0.8, 50).expand(1, 3, 1, -1)
    curves = (apply_tone_curve(grey, control_points(x.tone_curve)) for x in (isp, truth))
    torch.testing.assert_close(*curves, rtol=0, atol=0.03)


def test_it_does_for_another_photo_what_the_camera_does(learned):
    frame = expose(1)
    error = shoot(learned.isp, frame) / 255 - shoot(hidden_camera(), frame) / 255
    assert -10 * np.log10((error**2).mean()) > 33


def test_what_was_learned_is_saved_and_is_a_pipeline_like_any_other(learned, tmp_path):
    loaded = load_isp(save_isp(learned.isp, tmp_path / "camera"))
    assert not list(tmp_path.rglob("*.p*"))
    raw = expose(2).tensor()[..., :64, :64]
    views = develop_all(raw, CAMERA, ["bi,s,ga", str(tmp_path / "camera")])
    assert torch.equal(views[str(tmp_path / "camera")], learned.isp(raw))
    assert list(loaded.stages(raw))[-2:] == ["denoising", "clip"]
    gradients = stage_gradients(loaded, raw, lambda image: image.square().mean())
    assert all(float(g.gradient.abs().sum()) > 0 for g in gradients.values())
    # A step up the gradient in its own numbers raises the loss: it can be attacked.
    before = loaded(raw).square().mean()
    before.backward()
    with torch.no_grad():
        for value in loaded.parameters():
            value += 1e-3 * value.grad / value.grad.norm()
    assert loaded(raw).square().mean() > before


@pytest.mark.parametrize("seed", [0, 1])
def test_another_photo_is_refused(pair, seed):
    frame, _ = pair
    other = shoot(hidden_camera(), expose(7 + seed))
    refused("does not lie on its raw file", learn_pipeline, [(frame, other)], error=AlignmentError)


def test_another_photo_of_a_place_that_repeats_is_refused():
    # Shifted by some blocks, one town looks much like another.
    town = SyntheticDrone(1, seed=100, size=64)
    lights = [town.scene(number, 0, 0, 6, 8)[0] for number in (0, 1)]
    frames = [recorded(light, DRONE, seed) for seed, light in enumerate(lights)]
    pictures = [shoot(StaticISP(DRONE), frame) for frame in frames]
    assert align(frames[0], pictures[0]).shift == (0, 0)
    for frame, picture in zip(frames, pictures[::-1], strict=True):
        refused("does not lie", align, frame, picture, error=AlignmentError)


def test_crop_turn_and_size_are_found(pair):
    frame, picture = pair
    assert align(frame, picture).shift == (0, 0)
    assert align(frame, picture[11:-20, 6:-30]).shift == (11, 6)
    turned = align(frame, np.rot90(picture, 3))
    assert (turned.turned, turned.shift) == (1, (0, 0))
    small = np.asarray(Image.fromarray(picture).resize((320, 240), Image.Resampling.LANCZOS))
    assert align(frame, small).scale == 2
    refused("too few", align, frame, picture[:40], error=AlignmentError)
    refused("does not lie", align, frame, picture[:, ::-1], error=AlignmentError)


@pytest.mark.parametrize("strength", [0.005, -0.01])
def test_a_lens_correction_is_seen_and_measured(pair, strength):
    frame, picture = pair
    cv2 = pytest.importorskip("cv2")
    height, width = picture.shape[:2]
    centre = np.array([height, width], np.float32)[:, None, None] / 2
    arm = np.mgrid[:height, :width].astype(np.float32) - centre
    bend = 1 + strength * (arm**2).sum(0) / (centre**2).sum()
    y, x = arm * bend + centre
    moved = cv2.remap(picture, x, y, cv2.INTER_CUBIC)
    pixels = abs(strength) * np.linalg.norm(centre)
    aligned = align(frame, moved)
    assert aligned.lens == pytest.approx(pixels, rel=0.2)
    assert aligned.left_out > align(frame, picture).left_out
    assert np.linalg.norm(aligned.corners + 32 - centre.ravel(), axis=1).max() < 0.95 * np.linalg.norm(centre)


def test_what_moved_is_left_out(pair):
    frame, picture = pair
    changed = picture.copy()
    changed[128:320, 192:448] = changed[64:256, 128:384]
    aligned = align(frame, changed)
    inside = (aligned.corners >= [140, 204]) & (aligned.corners + 64 <= [308, 436])
    assert aligned.left_out > align(frame, picture).left_out
    assert inside.all(axis=1).sum() <= 1


def test_orientation_is_read_from_the_jpeg(pair, tmp_path):
    _, picture = pair
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(picture)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    assert np.abs(open_picture(tmp_path / "a.jpg").astype(float) - picture).mean() < 4
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    refused(r"b\.jpg", open_picture, tmp_path / "b.jpg", error=AlignmentError)


def test_pairs_share_a_camera_and_may_differ_in_layout_and_balance(pair):
    frame, picture = pair
    other = replace(frame, camera=replace(CAMERA, name="other"))
    refused("several cameras", learn_pipeline, [pair, (other, picture)])
    refused("no pairs", learn_pipeline, [])
    # The same exposure, cut by a column: another layout; and as if shot with less gain for red.
    other = replace(CAMERA, cfa=CAMERA.cfa.shifted(0, 1), black_level=(0.0626, 0.0625) * 2)
    aligned = align(RawFrame(np.ascontiguousarray(frame.mosaic[:, 1:-1]), other), picture[:, 1:-1])
    isp = LearnedISP(CAMERA, "bilinear")
    image = isp(aligned.blocks(np.arange(8), CAMERA).raw)[..., 12:-12, 12:-12]
    truth = isp(frame.tensor())
    y, x = aligned.corners[0] + np.add(other.cfa.shift_to(CAMERA.cfa), (0, 1))
    torch.testing.assert_close(image[0], truth[0, :, y : y + 64, x : x + 64], rtol=0, atol=1e-3)


@CAMERAS
@METHODS
def test_untouched_it_is_the_cameras_colour(camera, method):
    raw = torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(0)).double() * 0.1 + 0.07
    wanted = StaticISP(camera, method, variant="camera").stages(raw)["colour_matrix"]
    isp = LearnedISP(camera, method).double()
    assert isp(raw[:0]).shape == (0, 3, 24, 32)
    torch.testing.assert_close(isp(raw), gamma_correct(wanted), rtol=0, atol=1e-5)


@METHODS
def test_gradients_are_right(method):
    isp, generator = LearnedISP(DRONE, method).double(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in isp.parameters():
            value += 0.01 * torch.rand(value.shape, generator=generator)
    raw = (0.2 + 0.05 * torch.rand(1, 1, 6, 6, generator=generator)).double().requires_grad_()
    assert gradcheck_parameters(isp, raw)


def test_a_curve_rises_whatever_its_parameters(learned):
    rising = control_points(torch.randn(3, 34, generator=torch.Generator().manual_seed(0)))
    assert (rising.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(control_points(to_steps(rising)), rising, rtol=0, atol=1e-3)
    grey = torch.linspace(0, 1, 1000).expand(1, 3, 1, -1)
    assert (apply_tone_curve(grey, rising).diff(dim=-1) >= -1e-6).all()


def test_differences_of_colour_are_those_of_scikit_image():
    first, second = np.random.default_rng(0).random((2, 4000, 3))
    second[:1000] = first[:1000] + 0.02 * (second[:1000] - 0.5)
    first[-2:], second[-2:] = [[0, 0, 0], [0.5, 0.5, 0.5]], [[1, 1, 1], [0.5, 0.5, 0.5]]
    first, second = first.clip(0, 1), second.clip(0, 1)
    ours, theirs = lab(first), skimage.color.rgb2lab(first)
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    other = skimage.color.rgb2lab(second)
    wanted = skimage.color.deltaE_ciede2000(theirs, other)
    np.testing.assert_allclose(ciede2000(theirs, other), wanted, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("bright", [True, False], ids=["auto_bright", "plain"])
@pytest.mark.parametrize("balance", ["camera", "daylight"])
def test_a_raw_developer_is_learned(sample_raws, bright, balance):
    path = sample_raws / "colorchart.dng"
    with rawpy.imread(str(path)) as raw:
        red, green, blue, _ = raw.daylight_whitebalance
        own = {"use_camera_wb": True} if balance == "camera" else {"user_wb": [red, green, blue, 0]}
        image = raw.postprocess(**own, no_auto_bright=not bright)
    if balance == "camera":
        red, green, blue = read_raw(path).camera.white_balance
    learned = learn_pipeline([(path, as_jpeg(image)[0])])
    assert learned.scores.at["learned", "psnr"] > 30
    assert learned.gain > 8
    gains = torch.tensor([red / green, 1.0, blue / green])
    torch.testing.assert_close(learned.isp.white_balance, gains, rtol=0.05, atol=0)
    camera = read_raw(path).camera
    matrix = torch.tensor(camera.colour_matrix)
    torch.testing.assert_close(learned.isp.colour_matrix, matrix, rtol=0, atol=0.12)


def run(*arguments):
    result = CliRunner().invoke(app, ["learn-pipeline", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_writes_a_pipeline_and_says_how_good_it_is(pair, tmp_path):
    frame, picture = pair
    raw = write_dng(tmp_path / "a.dng", frame.mosaic[:320, :480], frame.camera)
    Image.fromarray(picture[:320, :480]).save(tmp_path / "a.jpg", quality=98)
    folder = tmp_path / "camera"
    result = run(tmp_path / "a.jpg", raw, "-o", folder)
    assert result.exit_code == 0, result.output
    assert "learned: " in result.output
    written = {"isp.json", "weights.safetensors", "report.txt", "scores.csv", "learned.png"}
    assert {p.name for p in folder.iterdir()} == written
    assert isinstance(load_isp(folder), LearnedISP)
    assert "--force" in run(raw, tmp_path / "a.jpg", "-o", folder).output
    assert "no pairs" in run(raw, "-o", tmp_path / "x").output
    assert "no raw file and its JPEG" in run(raw, raw, "-o", tmp_path / "x").output
