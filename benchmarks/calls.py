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


def forward_call(isp: nn.Module, raw: Tensor) -> Call:
    """Return a call that develops without recording gradients."""

    def call() -> Tensor:
        with torch.no_grad():
            return isp(raw)

    return call


def gradient_call(isp: nn.Module, raw: Tensor, gradient: Tensor) -> Call:
    """Return a call that develops and computes the gradients of all parameters."""

    def call() -> None:
        isp.zero_grad(set_to_none=True)
        isp(raw).backward(gradient)

    return call


def copy_call(device: str, floats: int) -> Call:
    """Return a call that copies ``floats`` numbers to memory that was touched before."""
    source, target = (torch.ones(floats, device=device) for _ in range(2))
    return lambda: target.copy_(source)
