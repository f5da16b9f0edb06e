"""The parametrized, the learned and the absent ISP; gradients, bounds, saving, export."""

import dataclasses
import json
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from r2l.camera import DRONE, MICROSCOPE
from r2l.datasets import Frames, SyntheticMicroscopy
from r2l.isp import HalfSizeRGB, NeuralISP, ParametrizedISP, StaticISP, fused, load_isp, save_isp
from r2l.isp.filters import gaussian_kernel
from r2l.isp.parametrized import _develop
from r2l.isp.pipeline import stage_gradients
from r2l.training import fit, make_classifier
from tests.common import CAMERAS, LAYOUTS, gradcheck_parameters, natural, refused, unchanged


def shaken(camera, seed=0, amount=0.03):
    """An ISP whose numbers all differ from the camera's, kernels without any symmetry, some steps away."""
    isp = ParametrizedISP(camera).double()
    chance = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    more = lambda value: value + amount * torch.rand(value.shape, **chance)  # noqa: E731
    isp.set_(**{name: more(value) for name, value in isp.numbers().items()})
    with torch.no_grad():
        for step in isp.steps.values():
            step.copy_(more(step))
    return isp


@CAMERAS
@LAYOUTS
def test_untouched_it_is_the_static_pipeline(camera, cfa):
    camera = dataclasses.replace(camera, cfa=cfa)
    raw = torch.cat([natural(camera), torch.rand(1, 1, 74, 90, dtype=torch.float64)])
    # The camera's numbers are rounded to float32 in the parameters.
    static = StaticISP.from_code("bi,s,ga", camera)(raw)
    got = ParametrizedISP(camera).double()(raw)
    assert (got - static).abs().mean() < 1e-6
    names = ("black_level", "white_balance", "colour_matrix")
    calibration = {name: torch.tensor(getattr(camera, name), dtype=torch.float64) for name in names}
    weights = torch.tensor(gaussian_kernel(0.5), dtype=torch.float64)
    exact = ParametrizedISP(camera).double()
    exact.set_(**calibration, blur_kernel=torch.outer(weights, weights), gamma=2.2)
    torch.testing.assert_close(exact(raw), static, rtol=0, atol=1e-9)


@CAMERAS
def test_in_float32_it_is_the_static_pipeline_within_1e_5(camera):
    raw = natural(camera, dtype=torch.float32)
    got, want = ParametrizedISP(camera)(raw), StaticISP.from_code("bi,s,ga", camera)(raw)
    # The slope of gamma grows without end towards black: there an error of float32 shows.
    lit = want > 0.02
    assert lit.float().mean() > 0.9
    assert (got - want)[lit].abs().max() < 1e-5


@LAYOUTS
def test_forward_equals_the_stages_for_any_parameters(cfa):
    isp = shaken(dataclasses.replace(DRONE, cfa=cfa))
    for size in ((2, 2), (6, 8), (60, 74)):
        raw = torch.rand(2, 1, *size, dtype=torch.float64)
        torch.testing.assert_close(isp(raw), isp.stages(raw)["gamma"], rtol=0, atol=1e-9)


@CAMERAS
def test_gradients_of_every_parameter_and_of_the_raw_data(camera):
    raw = natural(camera, 8, 10).requires_grad_()
    assert gradcheck_parameters(shaken(camera), raw, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_gradients_tile_by_tile_equal_those_of_the_stages(monkeypatch):
    monkeypatch.setattr(fused, "_TILE_PIXELS", 600)
    monkeypatch.setattr(fused, "_TILE_WIDTH", 32)
    isp, raw = shaken(DRONE), natural(DRONE)
    target = torch.rand(1, 3, 74, 90, dtype=torch.float64)
    gradients = []
    for image in (isp(raw), isp.stages(raw)["gamma"]):
        isp.zero_grad()
        (image - target).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in isp.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tile_pixels", [2, 500, 4000, 10**9])
def test_tiles_do_not_change_the_picture(monkeypatch, tile_pixels):
    raw = torch.cat([natural(DRONE), 1 - natural(DRONE)])
    isps = [shaken(DRONE), *(StaticISP.from_code(c, DRONE) for c in ("ma,u,ga", "me,u,me"))]
    with torch.no_grad():
        want = [isp(raw) for isp in isps]
        monkeypatch.setattr(fused, "_TILE_PIXELS", tile_pixels)
        monkeypatch.setattr(fused, "_TILE_WIDTH", 32)
        for isp, picture in zip(isps, want, strict=True):
            torch.testing.assert_close(isp(raw), picture, rtol=0, atol=1e-11)


@pytest.fixture
def two_threads(monkeypatch):
    """Two of torch's threads, and tiles so small that there is work for both."""
    monkeypatch.setattr(fused, "_TILE_PIXELS", 1000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def asked_elsewhere(question):
    """The answer of a thread that was not there before."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(question).result()


def test_tiles_on_two_threads_are_those_of_one_to_the_bit(two_threads):
    raw = natural(DRONE, dtype=torch.float32)
    isp, answers = ParametrizedISP(DRONE), []
    numbers = [number.detach().requires_grad_() for number in isp._measured(isp.numbers())]
    for threads in (2, 1):
        torch.set_num_threads(threads)
        image = fused.develop_with_parameters(raw, 4, _develop, *numbers)
        gradients = torch.autograd.grad(image.square().sum(), numbers)
        with torch.inference_mode():
            pictures = [StaticISP.from_code(code, DRONE)(raw) for code in ("bi,s,ga", "me,u,me")]
        assert all(picture.is_inference() for picture in pictures)
        answers.append([*pictures, image, *gradients])
        assert torch.get_num_threads() == asked_elsewhere(torch.get_num_threads) == threads
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def test_threads_work_alone_and_in_the_mode_of_the_caller(two_threads):
    seen, raw = [], natural(DRONE)

    def develop(tile, place):
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        seen.append((threading.get_ident(), torch.get_num_threads(), *modes))
        time.sleep(0.01)
        return [place.copy_(tile[:, :, 2:-2, 2:-2])]

    with torch.no_grad():
        (image,) = fused.develop_in_tiles(raw, 2, 1, develop)
    assert torch.equal(image, raw.expand(-1, 3, -1, -1))
    threads, *others = zip(*seen, strict=True)
    assert len(set(threads)) == 2
    assert threading.get_ident() not in threads
    assert [set(other) for other in others] == [{1}, {False}, {False}]


def test_errors_of_threads_arrive(two_threads):
    with pytest.raises(ZeroDivisionError):
        fused.develop_in_tiles(natural(DRONE), 2, 1, lambda *tile: 1 / 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_forked_process_develops_too(two_threads):
    isp, raw = StaticISP.from_code("bi,s,ga", DRONE), natural(DRONE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        want = isp(raw)
        child = os.fork()
        if not child:
            try:
                signal.alarm(60)
                os._exit(not torch.equal(isp(raw), want))
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_additive_layer():
    raw = natural(DRONE, 8, 10, dtype=torch.float32)
    for shape in ((1, 3, 8, 10), (3, 1, 1), (1, 1, 8, 10)):
        isp = ParametrizedISP(DRONE, additive_shape=shape)
        before = isp(raw)
        with torch.no_grad():
            isp.additive += 0.25
        torch.testing.assert_close(isp(raw), before + 0.25)
        assert list(isp.stages(raw))[-1] == "additive"
        assert torch.equal(isp.numbers()["additive"], isp.additive)
        isp(raw).sum().backward()
        assert isp.additive.grad.shape == torch.Size(shape)


def far_away(isp, seed=0):
    """Steps of any length."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for step in isp.steps.values():
            step.copy_(100 * torch.randn(step.shape, generator=generator))
    return isp


@CAMERAS
def test_no_step_leaves_what_a_camera_can_be(camera):
    raw = natural(camera, dtype=torch.float32)
    fresh = ParametrizedISP(camera)
    for seed, isp in enumerate((ParametrizedISP(camera), ParametrizedISP(camera).calibrate(raw))):
        numbers, box = far_away(isp, seed).numbers(), isp.physical_bounds()
        for name in ("gamma", "white_balance"):
            low, high = box[name]
            assert (numbers[name] >= low * (1 - 1e-5) - 1e-5).all()
            assert (numbers[name] <= high * (1 + 1e-5) + 1e-5).all()
        assert (numbers["black_level"] <= box["black_level"][1]).all()
        assert (isp.white_balance * fresh.white_balance > 0).all()
        for name in ("sharpening_kernel", "blur_kernel"):
            assert numbers[name].sum().item() == pytest.approx(1, abs=1e-3)
        # White in, white out: the gains alone change it.
        white = torch.tensor(camera.white_balance).sign()
        shown = (matrix @ white for matrix in (isp.colour_matrix, fresh.colour_matrix))
        torch.testing.assert_close(*shown, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(isp(torch.rand(1, 1, 8, 8))).all()


@CAMERAS
@pytest.mark.parametrize("exposure", [1.0, 0.01])
def test_a_step_of_one_means_the_same_for_every_number(camera, exposure):
    """The slope of the picture in each step, by automatic differentiation."""
    black = torch.tensor(camera.black_level, dtype=torch.float64).reshape(1, 1, 2, 2).repeat(1, 1, 4, 5)
    raw = black + exposure * (natural(camera, 8, 10) - black)
    isp = ParametrizedISP(camera).double().calibrate(raw)
    steps = {name: step.detach() for name, step in isp.steps.items()}

    def develop(*values):
        named = {f"steps.{name}": step for name, step in zip(steps, values, strict=True)}
        return torch.func.functional_call(isp, named, (raw,))

    slopes = torch.autograd.functional.jacobian(develop, tuple(steps.values()))
    for name, slope in zip(steps, slopes, strict=True):
        rms = slope.reshape(raw.numel() * 3, -1).square().mean(0).sqrt()
        torch.testing.assert_close(rms, torch.full_like(rms, 0.1), rtol=0.02, atol=0, msg=name)
    # The black level stays below nine tenths of the light, however far it goes.
    with torch.no_grad():
        isp.steps.black_level.fill_(1e6)
    mean = torch.nn.functional.pixel_unshuffle(raw, 2).mean((0, 2, 3))
    level = torch.tensor(camera.black_level, dtype=torch.float64)
    torch.testing.assert_close(isp.black_level, level + 0.9 * (mean - level))


def as_bits(camera, bits):
    """The same sensor with its counts of so many bits in a container of 16."""
    scale = (2**bits - 1) / 65535
    levels = tuple(scale * level for level in camera.black_level)
    return dataclasses.replace(camera, black_level=levels, white_level=scale), scale


@CAMERAS
def test_data_of_12_and_of_14_bit_are_learned_alike(camera):
    """30 steps towards the picture of another camera: the same numbers, as parts of the range."""
    raw = natural(camera, 16, 16)
    hidden = ParametrizedISP(camera).double()
    level = hidden.black_level + 0.02 * camera.span
    target = hidden.set_(black_level=level, gamma=1.9, white_balance=1.1 * hidden.white_balance)(raw)
    learned = []
    for bits in (16, 14, 12):
        own, scale = as_bits(camera, bits)
        exact = torch.tensor(own.black_level, dtype=torch.float64)
        isp = ParametrizedISP(own).double().set_(black_level=exact).calibrate(scale * raw)
        optimizer = torch.optim.Adam(isp.parameters(), 0.05)
        for _ in range(30):
            optimizer.zero_grad()
            loss = (isp(scale * raw) - target.detach()).square().mean()
            loss.backward()
            optimizer.step()
        assert loss < 0.005
        numbers = {name: value.detach() for name, value in isp.numbers().items()}
        numbers["black_level"] /= scale
        learned.append([loss.detach(), *numbers.values()])
    for other in learned[1:]:
        torch.testing.assert_close(other, learned[0], rtol=0.01, atol=1e-3)


def test_numbers_are_read_and_set_in_physical_units():
    isp = ParametrizedISP(DRONE).set_(gamma=1.8, white_balance=[1.0, 2.0, 3.0])
    assert isp.gamma.item() == pytest.approx(1.8)
    far_away(isp).set_(black_level=0.1)
    assert torch.equal(isp.black_level, torch.full((4,), 0.1))
    assert all((step == 0).all() for step in isp.steps.values())
    # A number that is written to is not lost without a word.
    with torch.no_grad(), pytest.raises(RuntimeError, match="inference"):
        isp.gamma.fill_(3.0)
    refused("choose from black_level", isp.set_, brightness=1.0)
    refused(r"shape \(3,\), not \(4,\)", isp.set_, black_level=[0.1] * 3)


@CAMERAS
def test_projection_into_a_narrower_box(camera):
    isp = ParametrizedISP(camera)
    box = isp.tolerance_bounds(0.1)
    with unchanged(isp):
        isp.project_(box)
    with torch.no_grad():
        for step in isp.steps.values():
            step += 0.2 * torch.randn(step.shape, generator=torch.Generator().manual_seed(1))
    kept = isp.numbers()["colour_matrix"].detach().clone()
    isp.project_({name: box[name] for name in ("black_level", "white_balance", "gamma")})
    for name in ("black_level", "white_balance", "gamma"):
        low, high = box[name]
        assert (isp.numbers()[name] >= low - 1e-5 * low.abs()).all()
        assert (isp.numbers()[name] <= high + 1e-5 * high.abs()).all()
    assert torch.equal(isp.colour_matrix, kept)


@CAMERAS
def test_tolerance_box_surrounds_the_camera(camera):
    isp = ParametrizedISP(camera)
    box = isp.tolerance_bounds(0.1)
    assert set(box) == set(isp.numbers())
    for name, parameter in isp.numbers().items():
        low, high = box[name]
        assert (low <= parameter).all()
        assert (parameter <= high).all()
        assert (high > low).any()
    refused("between 0 and 1", isp.tolerance_bounds, 0)
    refused("black_level", isp.project_, {"brightness": (torch.tensor(0.0), torch.tensor(1.0))})


def test_stage_gradients_are_those_of_finite_differences():
    isp, raw = shaken(DRONE), natural(DRONE, 8, 10)
    weights = torch.rand(1, 3, 8, 10, dtype=torch.float64)

    def loss(image):
        return (weights * image).sum()

    found = stage_gradients(isp, raw, loss)
    assert list(found) == list(isp.stages(raw))
    assert not raw.requires_grad
    assert all(p.grad is None for p in isp.parameters())
    for image, gradient in found.values():
        assert image.shape == gradient.shape
        assert gradient.abs().max() > 0
    torch.testing.assert_close(found["gamma"].gradient, weights)
    step = torch.zeros_like(raw)
    step[0, 0, 3, 4] = 1e-6
    slope = (loss(isp(raw + step)) - loss(isp(raw - step))) / 2e-6
    assert found["raw"].gradient[0, 0, 3, 4].item() == pytest.approx(slope.item(), rel=1e-4)
    refused("scalar", stage_gradients, isp, raw, lambda image: image)


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("size", [(32, 48), (38, 50), (8, 6)])
def test_neural_answers_at_full_size(encoder, size):
    isp = NeuralISP(DRONE, encoder).eval()
    image = isp(torch.rand(2, 1, *size))
    assert image.shape == (2, 3, *size)
    assert image.min() >= 0
    assert image.max() <= 1
    image.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in isp.parameters())


def test_neural_options():
    refused("resnet18", NeuralISP, DRONE, "resnet19")
    refused("3, 4 or 5", NeuralISP, DRONE, depth=7)


@LAYOUTS
def test_half_size_is_the_mean_of_a_tile(cfa):
    camera = dataclasses.replace(DRONE, cfa=cfa, black_level=[0.0] * 4)
    raw = torch.rand(1, 1, 6, 8)
    image = HalfSizeRGB(camera)(raw)
    tile = raw[0, 0, 2:4, 4:6].flatten()
    for colour in range(3):
        torch.testing.assert_close(image[0, colour, 1, 2], tile[list(cfa.positions(colour))].mean())


ISPS = (
    StaticISP(MICROSCOPE, "menon2007", "unsharp_masking", "median_denoising", "paper"),
    ParametrizedISP(DRONE, additive_shape=(1, 3, 16, 16)),
    NeuralISP(DRONE, "resnet18"),
    HalfSizeRGB(MICROSCOPE),
)


@pytest.mark.parametrize("isp", ISPS, ids=lambda i: type(i).__name__)
def test_saved_and_loaded_it_is_the_same(tmp_path, isp):
    with torch.no_grad():
        for parameter in isp.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    again = load_isp(save_isp(isp.eval(), tmp_path / "isp")).eval()
    raw = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(again(raw), isp(raw), rtol=0, atol=0)
    assert again.camera == isp.camera
    assert sorted(p.name for p in (tmp_path / "isp").iterdir()) == ["isp.json", "weights.safetensors"]


def test_a_folder_saved_in_physical_numbers_is_read(tmp_path):
    isp = shaken(DRONE).float()
    save_isp(isp, tmp_path)
    stored = load_file(tmp_path / "weights.safetensors")
    names = "black_level white_balance colour_matrix sharpening_kernel blur_kernel gamma"
    assert set(stored) == set(names.split())
    assert torch.equal(stored["gamma"], isp.gamma.detach())
    # As those were that had no steps, whose kernels had any sum.
    stored |= {"gamma": torch.tensor(1.5), "blur_kernel": torch.full((5, 5), 0.05)}
    save_file(stored, tmp_path / "weights.safetensors")
    again = load_isp(tmp_path)
    assert again.gamma.item() == 1.5
    assert again.blur_kernel.sum().item() == pytest.approx(1.25)
    part = torch.nn.Sequential(ParametrizedISP(DRONE))
    part.load_state_dict({f"0.{name}": value for name, value in stored.items()})
    assert torch.equal(part[0].gamma, again.gamma)
    # A checkpoint holds the steps, to the bit.
    part[0].load_state_dict(isp.state_dict())
    assert torch.equal(part[0].steps.gamma, isp.steps.gamma)
    refused("Missing", part[0].load_state_dict, {"gamma": stored["gamma"]}, error=RuntimeError)


def damage(old, new):
    def write(folder):
        text = json.dumps(json.loads((folder / "isp.json").read_text()))
        assert old in text
        (folder / "isp.json").write_text(text.replace(old, new))

    return write


DAMAGES = {
    "no description": (lambda f: (f / "isp.json").unlink(), "isp.json"),
    "no json": (lambda f: (f / "isp.json").write_text("{"), "isp.json"),
    "unknown kind": (damage("ParametrizedISP", "os.system"), "choose from"),
    "bad camera": (damage('"white_level": 1.0', '"white_level": 0.0'), "white_level"),
    "no layout": (damage('"RGGB"', '["RGGB"]'), "isp.json.*cfa is"),
    "endless": (damage('shape": null', f'shape": [1, 3, {10**6}, {10**6}]'), "isp.json.*additive_shape"),
    "nested": (lambda f: (f / "isp.json").write_text("[" * 100_000), "isp.json.*recursion"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "weights"),
    "cut weights": (lambda f: (f / "weights.safetensors").write_bytes(b"\0" * 20), "weights"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_named(tmp_path, name):
    damage, message = DAMAGES[name]
    save_isp(ParametrizedISP(DRONE), tmp_path)
    damage(tmp_path)
    refused(message, load_isp, tmp_path)
    refused("StaticISP", save_isp, torch.nn.Identity(), tmp_path)


def test_torch_export():
    isp, raw = ParametrizedISP(DRONE).eval(), natural(DRONE, 64, 48, dtype=torch.float32)
    program = torch.export.export(isp, (raw,))
    torch.testing.assert_close(program.module()(raw), isp(raw), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="install r2l[test]")
    isp, raw = ParametrizedISP(DRONE).eval(), natural(DRONE, 64, 48, dtype=torch.float32)
    path = tmp_path / "isp.onnx"
    torch.onnx.export(isp, (raw,), path, input_names=["raw"], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,) = session.run(None, {"raw": raw.numpy()})
    want = isp(raw)
    lit = want > 0.02
    assert (torch.from_numpy(image) - want).detach()[lit].abs().max() < 1e-4


@pytest.mark.parametrize("level", [1.0, 1.5, float("nan")])
def test_a_black_level_that_ran_away_says_what_to_do(level):
    isp = ParametrizedISP(DRONE).set_(black_level=[0.1, 0.1, level, 0.1])
    refused("(?s)not above.*take a lower learning rate", isp, torch.rand(1, 1, 8, 8))


@pytest.mark.slow
def test_no_black_level_above_the_signal_is_learned_at_low_light():
    """At a hundredth of the light; levels as parts of the mean signal above black."""
    parts, options = [], {"processor_lr": 10.0, "output_norm": "batch", "lr": 0.02, "batch_size": 8}
    for seed in range(3):  # without what holds them, the levels of each of ten passed it
        data = Frames.of(SyntheticMicroscopy(48, seed=seed, size=32, intensity=0.01), progress=False)
        mean = torch.nn.functional.pixel_unshuffle(data.raw, 2).mean((0, 2, 3))
        black = torch.tensor(data.camera.black_level)
        options |= {"processor": ParametrizedISP(data.camera), "seed": seed, "epochs": 3, "progress": False}
        trained = fit(make_classifier("SmallResNet", len(data.classes)), data, **options)
        parts.append((trained.processor.black_level.detach() - black) / (mean - black))
    parts = torch.stack(parts)
    assert parts.max() < 1
    assert parts.abs().max() > 0.02  # they did move


@pytest.mark.slow
@pytest.mark.parametrize(("names", "most"), [(("black_level",), 0.05), (None, 0.3)])
def test_a_black_level_that_starts_at_half_the_signal_comes_down(names, most):
    """One rate for all numbers; alone it finds the light, among all others it shares the way."""
    raw, black = natural(DRONE, 32, 32, dtype=torch.float32), torch.tensor(DRONE.black_level)
    target = ParametrizedISP(DRONE)(raw).detach()
    signal = torch.nn.functional.pixel_unshuffle(raw, 2).mean((0, 2, 3)) - black
    isp = ParametrizedISP(DRONE).set_(black_level=black + signal / 2).calibrate(raw)
    isp.search_(names or list(isp.numbers()))
    optimizer = torch.optim.Adam([p for p in isp.parameters() if p.requires_grad], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        (isp(raw) - target).square().mean().backward()
        optimizer.step()
        schedule.step()
    assert ((isp.black_level - black) / signal).abs().max() < most
