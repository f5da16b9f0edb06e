"""Calls to be timed, and names that several tables share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Call = Callable[[], object]

#: The static pipeline that costs most.
DEAREST = "me,u,me"
COPY = "copying alone"
#: Traffic of a development at the least, in bytes a pixel: float32 raw read, three float32 written.
BYTES_A_PIXEL = 4 + 3 * 4


def forward_call(isp: Callable[[Tensor], object], raw: Tensor) -> Call:
    """Return a call that develops without recording gradients."""

    def call() -> object:
        with torch.no_grad():
            return isp(raw)

    return call


def gradient_call(isp: nn.Module, raw: Tensor, gradient: Tensor) -> Call:
    """Return a call that develops and computes the gradients of all parameters."""

    def call() -> None:
        isp.zero_grad(set_to_none=True)
        isp(raw).backward(gradient)

    return call


def graph_call(call: Call) -> Call:
    """Return a call that replays what ``call`` did on the GPU, as one CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what is made at first use is no part of it
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def copy_call(device: str, floats: int) -> Call:
    """Return a call that copies ``floats`` numbers to memory that was touched before."""
    source, target = (torch.ones(floats, device=device) for _ in range(2))
    return lambda: target.copy_(source)
