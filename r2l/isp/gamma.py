"""Gamma correction with finite gradients."""

from __future__ import annotations

import torch
from torch import Tensor

#: Below one step of a 16-bit container the slope of the gamma curve is held, since it ends infinite.
GAMMA_SLOPE_FLOOR = 2.0**-16


def _power(x: Tensor, exponent: Tensor, out: Tensor | None = None) -> Tensor:
    """Return clip(x, 0, 1) ** exponent. Less time than pow.

    The logarithm of 0 leaves the quick path of vector units; hence the smallest normal number instead,
    whose own result is taken off again: 0 stays 0, to the bit.
    """
    tiny = torch.finfo(x.dtype).tiny
    black = torch.full_like(exponent, tiny).log2_().mul_(exponent).exp2_()
    y = torch.clamp(x, tiny, 1.0, out=out)
    return y.log2_().mul_(exponent).exp2_().sub_(black)


class _Gamma(torch.autograd.Function):
    """x ** (1 / gamma) on [0, 1] with an exact value everywhere and a finite slope at black."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, gamma: Tensor) -> Tensor:
        y = _power(x, 1.0 / gamma)
        ctx.save_for_backward(x, gamma, y)
        return y

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, gamma, y = ctx.saved_tensors
        grad_x = grad_gamma = None
        if ctx.needs_input_grad[0]:
            lit = y.clamp(min=GAMMA_SLOPE_FLOOR ** (1.0 / gamma.detach()))
            slope = lit / (x.clamp(min=GAMMA_SLOPE_FLOOR) * gamma)
            # Zero outside [0, 1], both ends inside; a vectorised mask.
            ends = (-torch.finfo(x.dtype).tiny, 1.0 + torch.finfo(x.dtype).eps)
            grad_x = torch.ops.aten.hardtanh_backward(grad, x, *ends) * slope
        if ctx.needs_input_grad[1]:
            logarithm = y.clamp(min=torch.finfo(y.dtype).tiny).log()
            grad_gamma = -(grad * y * logarithm).sum() / gamma
        return grad_x, grad_gamma


def gamma_correct(image: Tensor, gamma: float | Tensor = 2.2, out: Tensor | None = None) -> Tensor:
    """Linear to display: ``clip(image) ** (1 / gamma)``.

    The value has no floor: 0 stays 0. The gradient has: below 2**-16 the slope is that at 2**-16, since
    the true one grows to infinity. Outside [0, 1] it is 0, as that of `clip`. ``gamma`` may be a scalar
    tensor to be learned. With ``out``, which may be the image, the result is written there and has no
    gradient.
    """
    gamma = torch.as_tensor(gamma, dtype=image.dtype, device=image.device).reshape(())
    return _Gamma.apply(image, gamma) if out is None else _power(image, 1.0 / gamma, out)
