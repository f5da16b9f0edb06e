"""The compiled kernels do what the plain functions do, and only where they are asked for.

Those of a GPU run on one where there is one, and elsewhere in Triton's interpreter; that they compile for two
generations, and fit their registers, is asked of the compiler.
"""

import copy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from numba.core import caching
from torch._subclasses import FakeTensorMode

import r2l.files
from r2l.camera import CFA, DRONE, MICROSCOPE
from r2l.isp import ParametrizedISP, StaticISP, demosaic, develop_all, filters, kernels, pipeline
from r2l.isp.adjustable import AdjustableISP
from r2l.isp.learned import LearnedISP


@pytest.fixture
def both(monkeypatch):
    """Return what a function gives without the kernels, and with them."""

    def called(function):
        results = []
        for wanted in (False, True):
            monkeypatch.setattr(filters, "USE_KERNELS", wanted)
            with torch.no_grad():
                results.append(function())
        return results

    return called


def mosaic(*shape):
    """Smooth patches with noise, some of it below black and beyond white."""
    rng = np.random.default_rng(0)
    patches = rng.random((*shape[:-2], shape[-2] // 4 + 1, shape[-1] // 4 + 1)).repeat(4, -1).repeat(4, -2)
    raw = 0.05 + 0.9 * patches[..., : shape[-2], : shape[-1]] + 0.03 * rng.standard_normal(shape)
    return torch.from_numpy(raw.astype(np.float32))


def assert_same(plain, quick, ties=0.0):
    """In light: near black the curve makes much of the last digit."""
    assert quick.shape == plain.shape
    assert quick.dtype == torch.float32
    apart = (plain.double() ** 2.2 - quick.double() ** 2.2).abs()
    assert (apart > 1e-5).float().mean() <= ties


@pytest.mark.parametrize(
    "camera", [*(replace(DRONE, cfa=cfa) for cfa in CFA), MICROSCOPE], ids=lambda c: c.cfa.name
)
@pytest.mark.parametrize("shape", [(3, 1, 40, 62), (1, 1, 8, 6), (1, 1, 700, 900)], ids=str)
def test_the_twelve_are_the_same_but_where_directions_tie(both, camera, shape):
    raw = mosaic(*shape)
    plain, quick = both(lambda: develop_all(raw, camera))
    for code, image in plain.items():
        assert_same(image, quick[code], ties=2e-5 if code.startswith("me") else 0)


@pytest.mark.parametrize(
    "isp",
    [
        StaticISP.from_code("ma,u,me", DRONE, "camera"),
        StaticISP.from_code("me,s,ga", DRONE, "paper"),
        AdjustableISP("me,u,ga", DRONE, exposure=0.3, sharpening_radius=0.7, gamma=1.8, blur=0.9),
        AdjustableISP("bi,s,me", DRONE, sharpening=2.0, black_level_red=0.01),
        ParametrizedISP(DRONE).set_(gamma=1.9),
        LearnedISP(DRONE, "menon2007"),
    ],
    ids=lambda isp: f"{type(isp).__name__} {isp.extra_repr()}",
)
def test_other_pipelines_are_the_same(both, isp):
    raw = mosaic(2, 1, 62, 40)
    # A learned one cuts highlights first, so that many directions tie.
    assert_same(*both(lambda: isp(raw)), ties=0.01 if isinstance(isp, LearnedISP) else 1e-3)


def test_black_stays_black_white_white_and_the_curve_is_near(both):
    kernels = pytest.importorskip("r2l.isp.kernels")
    light = torch.linspace(-0.1, 1.1, 300_001).reshape(1, 1, 1, -1)
    image = kernels.finish(
        light, torch.zeros(1, 2, 1, light.shape[-1]), 2.2, torch.empty(1, 3, 1, light.shape[-1])
    )
    wanted = light[0, 0, 0].double().clamp(0, 1) ** (1 / 2.2)
    assert (image[0, :, 0] - wanted).abs().max() < 0.25 / 65535
    assert (image[0, :, 0, light[0, 0, 0] <= 0] == 0).all()
    torch.testing.assert_close(image[0, :, 0, -1], torch.ones(3), rtol=0, atol=2e-7)


def test_gradients_and_doubles_go_the_plain_way(monkeypatch):
    raw, isp = mosaic(1, 1, 16, 20), StaticISP.from_code("me,u,me", DRONE)

    def answers():
        leaf = raw.clone().requires_grad_()
        image = isp(leaf)
        image.square().sum().backward()
        return image.detach(), leaf.grad, isp(raw.double())

    before = answers()
    monkeypatch.setattr(filters, "USE_KERNELS", True)
    for one, other in zip(before, answers(), strict=True):
        assert torch.equal(one, other)


def test_without_numba_the_error_tells_what_to_install(monkeypatch):
    monkeypatch.setattr(filters, "USE_KERNELS", True)
    monkeypatch.setattr(r2l.files, "find_spec", lambda name: None)
    filters._loaded.cache_clear()
    with pytest.raises(r2l.files.MissingExtraError, match=r"r2l\[kernels\]"):
        StaticISP(DRONE)(mosaic(1, 1, 8, 8))
    filters._loaded.cache_clear()


def test_where_no_folder_can_be_written_they_are_compiled_anew(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert kernels._compiled(lambda x: x + 1)(1) == 2


GPU = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS_OF_GPUS = [f"r2l.isp.{name}" for name in ("gpu_kernels", "gpu_menon", "gpu")]


@pytest.fixture
def on_gpu(monkeypatch):
    """Return what a function gives on a GPU, or on what stands for it, without the kernels and with them."""
    pytest.importorskip("triton")
    if GPU == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        for name in KERNELS_OF_GPUS:
            monkeypatch.setitem(sys.modules, name, None)
            del sys.modules[name]
    *_, gpu = (import_module(name) for name in KERNELS_OF_GPUS)

    def called(function, rows=16, columns=32):
        monkeypatch.setitem(sys.modules[KERNELS_OF_GPUS[0]]._LAUNCH, "ROWS", rows)
        monkeypatch.setitem(sys.modules[KERNELS_OF_GPUS[0]]._LAUNCH, "COLUMNS", columns)
        results = []
        for module in (None, gpu):
            for user in (pipeline, demosaic):
                monkeypatch.setattr(user, "gpu_kernels", lambda x, module=module: module)
            with torch.no_grad():
                results.append(function())
        return results

    return called


def test_the_twelve_are_the_same_on_a_gpu(on_gpu):
    raw, camera = mosaic(1, 1, 12, 30).to(GPU), replace(DRONE, cfa=CFA.GRBG)
    plain, quick = on_gpu(lambda: develop_all(raw, camera))
    for code, image in plain.items():
        assert_same(image, quick[code], ties=0 if GPU == "cpu" or code[:2] != "me" else 1e-3)


@pytest.mark.parametrize("cfa", CFA, ids=lambda cfa: cfa.name)
def test_menon_is_the_same_on_a_gpu_in_blocks_that_do_not_fit(on_gpu, cfa):
    matrix, raw = ((1.0, 0.2, -0.1), (0.0, 0.5, 0.5)), mosaic(2, 1, 26, 34).to(GPU)
    plain, quick = on_gpu(lambda: demosaic.menon_inside(raw, cfa, matrix=matrix), 16, 8)
    assert plain.shape == (2, 2, 10, 18)
    assert_same(plain, quick, ties=0 if GPU == "cpu" else 1e-2)


@pytest.mark.parametrize(
    "isp",
    [
        StaticISP.from_code("bi,s,me", replace(DRONE, cfa=CFA.GBRG), "camera"),
        StaticISP.from_code("me,s,fft", DRONE),
        AdjustableISP("bi,s,me", DRONE, sharpening=2.0, blur=0.5, gamma=1.8),
        AdjustableISP("bi,u,ga", DRONE, sharpening_radius=2.5),
        LearnedISP(DRONE, "menon2007"),
    ],
    ids=lambda isp: f"{type(isp).__name__} {isp.extra_repr()}",
)
def test_other_pipelines_are_the_same_on_a_gpu(on_gpu, isp):
    raw, isp = mosaic(2, 1, 10, 18).to(GPU), copy.deepcopy(isp).to(GPU)
    assert_same(*on_gpu(lambda: isp(raw), 8, 16), ties=0 if GPU == "cpu" else 0.01)


def test_another_directional_stage_goes_its_own_way_on_a_gpu(on_gpu):
    raw, isp = mosaic(1, 1, 8, 10).to(GPU), StaticISP.from_code("me,s,ga", DRONE).to(GPU)
    inside = partial(demosaic.menon_inside, silent=True)
    own = pipeline.Directional("demosaic", demosaic.menon2007, DRONE.cfa, inside=inside, reach=8)
    isp._plan = isp._plan._replace(directional=(own,))
    assert_same(*on_gpu(lambda: isp(raw)), ties=0 if GPU == "cpu" else 0.01)


def test_black_stays_black_and_white_white_on_a_gpu(on_gpu):
    light = torch.linspace(-0.1, 1.1, 3001, device=GPU).expand(1, 1, 3, -1).contiguous()
    kernels = sys.modules[KERNELS_OF_GPUS[0]]
    _, image = on_gpu(lambda: kernels.median(light, torch.zeros(1, 2, 1, 2999, device=GPU), 2.2), 1, 4096)
    wanted = light[0, 0, :1, 1:-1].double().clamp(0, 1) ** (1 / 2.2)
    assert (image[0] - wanted).abs().max() < 0.25 / 65535
    assert (image[..., light[0, 0, 0, 1:-1] <= 0] == 0).all()
    assert (image[..., light[0, 0, 0, 1:-1] >= 1] == 1).all()


@pytest.mark.skipif(GPU == "cpu", reason="for machines with a GPU")
def test_a_cuda_graph_holds_them(monkeypatch):
    monkeypatch.setattr(filters, "USE_KERNELS", True)
    raw, isp = mosaic(2, 1, 62, 40).to(GPU), StaticISP.from_code("me,u,me", DRONE).to(GPU)
    with torch.no_grad():
        wanted = isp(raw)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            image = isp(raw)
    graph.replay()
    assert torch.equal(image, wanted)


def test_on_a_gpu_too_gradients_and_doubles_go_the_plain_way(monkeypatch):
    pytest.importorskip("triton")
    with FakeTensorMode():
        raw = torch.empty(1, 1, 8, 8, device="cuda")
        assert filters.gpu_kernels(raw) is None
        monkeypatch.setattr(filters, "USE_KERNELS", True)
        assert filters.gpu_kernels(raw) is import_module("r2l.isp.gpu")
        others = raw.double(), raw.half(), raw.cpu(), raw.clone().requires_grad_()
        assert not any(map(filters.gpu_kernels, others))


def test_without_triton_a_gpu_goes_the_plain_way(monkeypatch):
    monkeypatch.setattr(filters, "USE_KERNELS", True)
    monkeypatch.setattr(filters, "find_spec", lambda name: None)
    filters._loaded_for_gpus.cache_clear()
    with FakeTensorMode():
        assert filters.gpu_kernels(torch.empty(1, 1, 8, 8, device="cuda")) is None
    filters._loaded_for_gpus.cache_clear()


class _OneOfThem:
    """A driver that knows a kind of GPU and can't launch."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return f"none of capability {self.capability}"

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return import_module("triton.backends.compiler").GPUTarget("cuda", self.capability, 32)


@pytest.mark.parametrize(("capability", "height"), [(80, 46), (90, 2)])
def test_they_compile_for_gpus_and_keep_all_in_registers(monkeypatch, tmp_path, capability, height):
    triton = pytest.importorskip("triton", minversion="3.9")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", _OneOfThem(capability))
    made = []
    monkeypatch.setattr(
        triton.runtime.JITFunction,
        "__getitem__",
        lambda kernel, grid: lambda *values, **sides: made.append(kernel.warmup(*values, grid=grid, **sides)),
    )
    gpu = import_module("r2l.isp.gpu")
    for user in (pipeline, demosaic):
        monkeypatch.setattr(user, "gpu_kernels", lambda raw: gpu)
    with torch.no_grad():
        for code in ("ma,u,ga", "me,u,me"):
            StaticISP.from_code(code, DRONE)(mosaic(1, 1, height, 32))
    assert len(made) == 6
    for number, kernel in enumerate(made):
        cubin = tmp_path / f"{number}.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        tool = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin]
        used = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
        assert " STACK:0 " in used
        assert " LOCAL:0 " in used
