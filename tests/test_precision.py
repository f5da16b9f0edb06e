"""Numbers too short to process a mosaic in, memory formats, tracers and compilers: each kind of ISP."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from r2l.camera import DRONE
from r2l.datasets import SyntheticMicroscopy
from r2l.isp import HalfSizeRGB, NeuralISP, ParametrizedISP, StaticISP, develop_all, open_pipeline
from r2l.isp.adjustable import AdjustableISP
from r2l.isp.filters import pack, unpack
from r2l.isp.functional import gamma_correct
from r2l.isp.pipeline import stage_gradients
from r2l.isp.static import PIPELINES
from r2l.options import Options
from r2l.training import fit, make_classifier
from tests.test_parametrized import natural, shaken


@cache  # made anew, it takes five times as long as a copy
def neural():
    torch.manual_seed(0)
    return NeuralISP(DRONE, "resnet18").eval()


KINDS = {
    "bilinear": lambda: StaticISP.from_code("bi,s,ga", DRONE),
    "malvar": lambda: StaticISP.from_code("ma,u,me", DRONE),
    "menon": lambda: StaticISP.from_code("me,s,me", DRONE, variant="camera"),
    "paper": lambda: StaticISP.from_code("ma,u,ga", DRONE, variant="paper"),
    "fft": lambda: StaticISP.from_code("bi,s,fft", DRONE),
    "adjusted": lambda: AdjustableISP("bi,u,me", DRONE, exposure=0.5, saturation=0.8),
    "parametrized": lambda: shaken(DRONE).float(),
    "additive": lambda: ParametrizedISP(DRONE, (1, 3, 32, 32)),
    "neural": lambda: copy.deepcopy(neural()),
    "half size": lambda: HalfSizeRGB(DRONE),
    "between stages": lambda: open_pipeline("shading+ma,s,ga+tone:srgb+chroma_blur", DRONE),
}
EACH = pytest.mark.parametrize("kind", KINDS)
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@pytest.fixture(scope="module")
def raw():
    return natural(DRONE, 32, 32, dtype=torch.float32).repeat(2, 1, 1, 1)


def gradients(isp, raw, autocast=None):
    """The picture, and gradients of the raw data and of every parameter of a loss of it."""
    raw, isp = raw.clone().requires_grad_(), copy.deepcopy(isp)
    weights = torch.rand(1, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        image = isp(raw)
        (image * weights).sum().backward()
    return [image.detach(), raw.grad, *(p.grad for p in isp.parameters())]


def alike(got, want, tolerance=0.0):
    """Within a part of the largest."""
    for a, b in zip(got, want, strict=True):
        if b is not None:
            assert a.dtype == b.dtype
            assert (a - b).abs().max() <= tolerance * b.abs().max()


@EACH
@HALVES
def test_autocast_changes_nothing_forward_and_backward(kind, dtype, raw):
    isp = KINDS[kind]()
    alike(gradients(isp, raw, dtype), gradients(isp, raw))
    want = isp.stages(raw)
    with torch.autocast("cpu", dtype=dtype):
        alike(isp.stages(raw).values(), want.values())
        # Without gradients of the frames: tile by tile, each tile anew on the way back.
        learner = copy.deepcopy(isp)
        if any(p.requires_grad for p in learner.parameters()):
            learner(raw).sum().backward()
    plain = copy.deepcopy(isp)
    if any(p.requires_grad for p in plain.parameters()):
        plain(raw).sum().backward()
        alike(*([p.grad for p in each.parameters()] for each in (learner, plain)))


@HALVES
def test_all_views_and_gradients_of_stages_under_autocast_and_of_half_precision(dtype, raw):
    isp, codes = ParametrizedISP(DRONE), [*PIPELINES, "shading+ma,s,ga+tone:srgb+chroma_blur"]
    want, slopes = develop_all(raw, DRONE, codes), stage_gradients(isp, raw, torch.sum)
    with torch.autocast("cpu", dtype=dtype):
        alike(develop_all(raw, DRONE, codes).values(), want.values())
        got = stage_gradients(isp, raw, torch.sum)
    alike([s.gradient for s in got.values()], [s.gradient for s in slopes.values()])
    want = {code: view.to(dtype) for code, view in develop_all(raw.to(dtype).float(), DRONE, codes).items()}
    alike(develop_all(raw.to(dtype), DRONE, codes).values(), want.values())


@EACH
@HALVES
def test_half_precision_is_computed_in_float32_and_answered_as_it_came(kind, dtype, raw):
    isp, half = KINDS[kind](), raw.to(dtype)
    want = isp(half.float())
    # Its numbers stay whole, so that black levels are not rounded.
    shortened = copy.deepcopy(isp).to(dtype)
    assert {t.dtype for t in shortened.state_dict().values() if t.is_floating_point()} <= {torch.float32}
    for each in (isp, shortened):
        image = each(half)
        assert image.dtype == dtype
        assert torch.equal(image, want.to(dtype))
    if any(p.requires_grad for p in isp.parameters()):
        shortened(half).float().sum().backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in isp.parameters())


@HALVES
def test_the_gamma_curve_of_half_precision_is_that_of_full(dtype):
    x = torch.linspace(0, 1, 1000).to(dtype)
    assert torch.equal(gamma_correct(x), gamma_correct(x.float()).to(dtype))
    assert gamma_correct(torch.ones((), dtype=dtype)) == 1


@EACH
@pytest.mark.parametrize("form", ["channels last", "permuted", "odd storage", "expanded"])
def test_the_form_in_memory_does_not_matter(kind, form, raw):
    isp, want = KINDS[kind](), KINDS[kind]()(raw)
    forms = {
        "channels last": raw.to(memory_format=torch.channels_last),
        "permuted": torch.from_numpy(np.ascontiguousarray(raw.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
        "odd storage": torch.cat([torch.zeros(1), raw.flatten()])[1:].view(raw.shape),
        "expanded": raw[:1].expand(2, 1, 32, 32),
    }
    channels_last = copy.deepcopy(isp).to(memory_format=torch.channels_last)
    torch.testing.assert_close(isp(forms[form]), want, rtol=0, atol=2e-6)
    torch.testing.assert_close(channels_last(forms[form]), want, rtol=0, atol=2e-6)
    alike(gradients(isp, forms[form]), gradients(isp, raw), 1e-5)


@EACH
def test_the_smallest_frame(kind):
    isp, raw = KINDS[kind](), torch.full((1, 1, 2, 2), 0.3)
    isp = ParametrizedISP(DRONE, (1, 3, 1, 1)) if kind == "additive" else isp
    assert torch.isfinite(isp(raw)).all()
    if kind != "neural":
        assert isp(raw[:0]).numel() == 0
        torch.testing.assert_close(isp(raw), [*isp.stages(raw).values()][-1], rtol=0, atol=2e-6)


def test_packing_of_sides_of_length_one():
    for shape in ((1, 1, 2, 2), (3, 1, 2, 2), (1, 1, 2, 8), (2, 1, 8, 2), (1, 3, 2, 2)):
        image = torch.rand(shape)
        for form in (image, image.to(memory_format=torch.channels_last), image.mT.contiguous().mT):
            planes = pack(form)
            assert torch.equal(planes, torch.nn.functional.pixel_unshuffle(image, 2))
            assert torch.equal(unpack(planes), image)
            assert torch.equal(unpack(planes.contiguous()), image)


@EACH
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_torch_jit_trace_and_export(kind, raw):
    isp, again = KINDS[kind]().requires_grad_(False), raw.flip(0, -1).roll(1, -1)
    exported = torch.export.export(KINDS[kind]().eval(), (raw,))
    for program in (torch.jit.trace(isp, raw), exported.module()):
        torch.testing.assert_close(program(again), isp(again), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("malvar", "parametrized") else pytest.param(kind, marks=pytest.mark.slow)
        for kind in KINDS
    ],
)
def test_torch_compile(kind, raw):
    """In one graph, with autocast and without; what autograd makes of it where a stage is met first."""
    torch.compiler.reset()
    isp = KINDS[kind]()
    followed = torch.compile(isp, backend="eager", fullgraph=True)
    torch.testing.assert_close(followed(raw), isp(raw), rtol=0, atol=2e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(followed(raw), isp(raw), rtol=0, atol=2e-5)
    backend = "aot_eager" if kind in ("menon", "paper", "fft", "parametrized") else "eager"
    got, want = gradients(torch.compile(isp, backend=backend, fullgraph=True), raw), gradients(isp, raw)
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=2e-5)
    alike(got, want, 1e-3)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_true_half_precision_is_refused_before_training(precision):
    with pytest.raises(ValueError, match=f"take {precision[:-4]}mixed"):
        Options(precision=precision)
    data = SyntheticMicroscopy(9, size=32)
    with pytest.raises(ValueError, match="rounds the raw data"):
        fit(make_classifier("SmallResNet", 9), data, epochs=1, precision=precision, progress=False)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_a_training_in_another_precision_answers(precision):
    data = SyntheticMicroscopy(9, size=32)
    isp = ParametrizedISP(data.camera)
    model = make_classifier("SmallResNet", 9)
    module = fit(model, data, processor=isp, epochs=2, precision=precision, progress=False)
    assert np.isfinite(module.history["train_loss"]).all()
    assert 0 < (module.processor.sharpening_kernel - isp.sharpening_kernel).abs().max() < 0.1


class _NothingCopied(TorchFunctionMode):
    """Fails where numbers go to another device: a CUDA graph can't hold that, and a GPU waits for it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "cpu":
            assert all(a.device == result.device for a in args if isinstance(a, torch.Tensor))
            if function in (torch.tensor, torch.as_tensor):
                assert isinstance(args[0], torch.Tensor)
        return result


@EACH
@pytest.mark.parametrize("learns", [False, True])
def test_nothing_is_copied_to_a_gpu_once_it_is_warm(kind, learns):
    """On the device "meta", which computes no values and needs no GPU."""
    isp, raw = KINDS[kind]().to("meta"), torch.empty(2, 1, 32, 32, device="meta", requires_grad=learns)
    assert {stage.device.type for stage in isp.stages(raw).values()} == {"meta"}
    isp(raw)
    with _NothingCopied():
        image = isp(raw)
        assert image.device.type == "meta"
    if learns:
        image.sum().backward()


def test_twelve_views_stay_on_the_device():
    views = develop_all(torch.empty(2, 1, 32, 32, device="meta"), DRONE)
    assert [view.device.type for view in views.values()] == ["meta"] * 12


def test_the_check_for_copies_sees_one():
    with _NothingCopied(), pytest.raises(AssertionError):
        torch.as_tensor([1.0, 2.0], device="meta")
    with _NothingCopied(), pytest.raises(AssertionError):
        torch.ones(2).to("meta")
