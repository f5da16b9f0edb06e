"""The table of what `make bench` measures: r2l, and what others use for the same work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.calls import (
    BYTES_A_PIXEL,
    COPY,
    DEAREST,
    Call,
    copy_call,
    forward_call,
    gradient_call,
    graph_call,
)
from benchmarks.epochs import EpochWorkload, epoch_contenders
from benchmarks.evaluation import MatrixWorkload, matrix_contenders
from benchmarks.libraries import (
    colour_demosaicing_call,
    debayer_call,
    kornia_call,
    libraw_call,
    opencv_call,
    recipe_call,
)
from benchmarks.published import PublishedParametrizedISP
from benchmarks.scan import ScanWorkload, scan_contenders
from benchmarks.timing import Contender, SkippedError
from benchmarks.workload import Workload
from r2l.isp import PIPELINES, StaticISP, develop_all, filters
from r2l.isp.functional import HALF
from r2l.isp.parametrized import ParametrizedISP

#: The static pipelines of the table: each demosaicing, with the quickest and the dearest filters.
CODES = ("bi,s,ga", "bi,u,me", "ma,s,ga", "ma,u,me", "me,s,ga", "me,u,me")
#: Workloads that others take part in than in developing frames.
_OF_THEIR_OWN: dict[type[Workload], Callable[..., list[Contender]]] = {
    EpochWorkload: epoch_contenders,
    ScanWorkload: scan_contenders,
    MatrixWorkload: matrix_contenders,
}
# Larger than any cache.
_COPIED_FLOATS = 2**25


def compiled(isp: nn.Module) -> nn.Module:
    """Return ``isp`` under `torch.compile`.

    Raises:
        SkippedError: there is no C++ compiler.
    """
    names = (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl")
    if not any(name and shutil.which(name) for name in names):
        raise SkippedError("torch.compile needs a C++ compiler and finds none")
    return torch.compile(isp, dynamic=False)


class _WithKernels(nn.Module):
    """An ISP, or what else takes raw frames, with R2L_KERNELS=1, on a device."""

    def __init__(self, device: str, isp: Callable[[Tensor], Any]) -> None:
        compiler = "numba" if device == "cpu" else "triton"
        if find_spec(compiler) is None:
            raise SkippedError(f"{compiler} is not installed")
        super().__init__()
        self.isp = isp

    def forward(self, raw: Tensor) -> Any:
        filters.USE_KERNELS = True
        try:
            return self.isp(raw)
        finally:
            filters.USE_KERNELS = False


def _compiling(setup: Callable[[], Call]) -> Call:
    """Return the call of ``setup`` after its first run, which compiles.

    Raises:
        SkippedError: it doesn't compile.
    """
    call = setup()
    try:
        call()
    except RuntimeError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SkippedError(f"torch.compile fails ({reason})") from error
    return call


def _graphed(setup: Callable[[], Call]) -> Call:
    try:
        return graph_call(setup())
    except RuntimeError as error:
        raise SkippedError(f"no CUDA graph of it ({str(error).splitlines()[0]})") from error


def _copy(work: Workload, floats: int) -> Contender:
    pixels = 2 * 4 * floats / BYTES_A_PIXEL  # Each number is read and written.
    amount = work.amount * pixels / work.pixels
    return work.contender(COPY, partial(copy_call, work.device, floats), amount=amount)


def _r2l(work: Workload, compile_too: bool) -> list[Contender]:
    """Return r2l's own lines, on the device of the workload."""
    lines: list[tuple[str, Callable[[], Call], dict[str, str]]] = []

    def static(code: str, wrap: Callable[[nn.Module], nn.Module]) -> Call:
        isp = StaticISP.from_code(code, work.camera).to(work.device)
        return forward_call(wrap(isp), work.raw)

    def forward(wrap: Callable[[nn.Module], nn.Module]) -> Call:
        return forward_call(wrap(ParametrizedISP(work.camera).to(work.device)), work.raw)

    def gradient(wrap: Callable[[nn.Module], nn.Module]) -> Call:
        isp = wrap(ParametrizedISP(work.camera).to(work.device))
        return gradient_call(isp, work.raw, work.gradient)

    ways = [("r2l", lambda isp: isp)]
    kernels = partial(_WithKernels, work.device)
    if work.device != "cpu" or not work.lengthy:
        ways.append(("r2l kernels", kernels))
    if compile_too:
        ways.append(("r2l compiled", compiled))
    for way, wrap in ways:
        for code in CODES:
            libraw = "LibRaw AHD" if code.startswith("me") else "LibRaw LINEAR"
            peers = {"x recipe": f"recipe {code}", "x LibRaw": libraw}
            lines.append((f"{way} {code}", partial(static, code, wrap), peers))
        # Gradients go the plain way.
        modes = {"forward": forward} | ({} if way == "r2l kernels" else {"forward + backward": gradient})
        for mode, setup in modes.items():
            peers = {"x published": f"published parametrized, {mode}"}
            lines.append((f"{way} parametrized, {mode}", partial(setup, wrap), peers))
    if work.device != "cpu":
        for name, setup, peers in [line for line in lines if not line[0].startswith("r2l compiled")]:
            name = name.replace("r2l", "r2l CUDA graph", 1)
            lines.append((name, partial(_graphed, setup), peers))
    if not work.lengthy:
        peers = {"x recipe": "recipe, twelve views", f"x {DEAREST}": f"r2l {DEAREST}"}
        lines.append(("r2l develop_all, twelve views", partial(_develop_all_call, work), peers))
        call = partial(_develop_all_call, work, kernels)
        peers = {"x recipe": "recipe, twelve views", f"x {DEAREST}": f"r2l kernels {DEAREST}"}
        lines.append(("r2l kernels develop_all, twelve views", call, peers))
    return [
        work.contender(
            name,
            partial(_compiling, setup) if name.startswith("r2l compiled") else setup,
            {**peers, "share of copy": COPY},
        )
        for name, setup, peers in lines
    ]


def _develop_all_call(
    work: Workload, wrap: Callable[[Callable[[Tensor], Any]], Any] = lambda develop: develop
) -> Call:
    return forward_call(wrap(lambda raw: develop_all(raw, work.camera)), work.raw)


def _published(work: Workload) -> list[Contender]:
    """Return the published parametrized pipeline."""

    def forward() -> Call:
        return forward_call(PublishedParametrizedISP(work.camera).to(work.device), work.raw)

    def gradient() -> Call:
        isp = PublishedParametrizedISP(work.camera).to(work.device)
        return gradient_call(isp, work.raw, work.gradient)

    modes = [("forward", forward)] + ([] if work.lengthy else [("forward + backward", gradient)])
    return [work.contender(f"published parametrized, {mode}", setup) for mode, setup in modes]


def _libraries(work: Workload) -> list[Contender]:
    """Return the peers that run on a CPU."""
    lines = [(f"recipe {code}", partial(recipe_call, work, [code])) for code in CODES]
    if not work.lengthy:
        lines.append(("recipe, twelve views", partial(recipe_call, work, PIPELINES)))
        for name in ("bilinear", "Malvar2004", "Menon2007"):
            title = f"colour-demosaicing {name}, demosaic alone"
            lines.append((title, partial(colour_demosaicing_call, work, name)))
    lines.append(("OpenCV bilinear uint16, demosaic alone", partial(opencv_call, work)))
    if work.shape[0] == 1:
        for name in ("LINEAR", "PPG", "AHD"):
            lines.append((f"LibRaw {name}", partial(libraw_call, work, name)))
            title = f"LibRaw {name}, opening the file included"
            lines.append((title, partial(libraw_call, work, name, opening=True)))
    return [work.contender(*line) for line in lines]


def _halves(work: Workload) -> list[Contender]:
    """Return frames of half precision, which are developed in float32."""
    isps = {CODES[0]: partial(StaticISP.from_code, CODES[0]), "parametrized, forward": ParametrizedISP}

    def setup(make: Callable[..., nn.Module], dtype: torch.dtype) -> Call:
        return forward_call(make(work.camera).to(work.device), work.raw.to(dtype))

    return [
        work.contender(f"r2l {what}, of {dtype}", partial(setup, make, dtype), {"x float32": f"r2l {what}"})
        for what, make in isps.items()
        for dtype in HALF
    ]


def _on_any_device(work: Workload) -> list[Contender]:
    """Return the peers that run on a GPU too."""
    lines = [("kornia raw_to_rgb, demosaic alone", partial(kornia_call, work))]
    for name in ("Debayer3x3", "Debayer5x5"):
        lines.append((f"pytorch-debayer {name}, demosaic alone", partial(debayer_call, work, name)))
    return [work.contender(*line) for line in lines]


def contenders(work: Workload, quick: bool = False) -> list[Contender]:
    """Return who takes part in a workload."""
    if of_its_own := _OF_THEIR_OWN.get(type(work)):
        return of_its_own(work)
    floats = _COPIED_FLOATS // 32 if quick else _COPIED_FLOATS
    shared = [*_r2l(work, compile_too=not (work.lengthy or quick)), *_published(work)]
    others = _libraries(work) if work.device == "cpu" else _halves(work)
    return [*shared, *_on_any_device(work), *others, _copy(work, floats)]
