"""Fit what a camera does to the colours of a pixel: rows of its matrix, and rising curves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import lsq_linear

from r2l.isp.learned import SPANS, spline_weights

# Steps of the fit at most, and the deviation from which on a pixel counts less, display domain.
_STEPS, _ROBUST = 12, 0.03
# What is known before the first pixel: how firmly the row of a matrix and its offset stay where they start,
# and how straight a curve is.
_ANCHOR = np.array([1.0, 1.0, 1.0, 10.0])
_STRAIGHT = 0.3 * SPANS * np.diff(np.eye(SPANS + 2)[1:], axis=0)
_LOWEST = np.array([-np.inf] + [0.0] * (SPANS + 1))


def _curve_weights(linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what each step of a curve adds to the display value (n, SPANS + 2), and the slope of that."""
    x = linear.clip(0, 1)
    u = x ** (1 / 2.2)
    first, weights = spline_weights(torch.from_numpy(u))
    t = u * SPANS - first.numpy()
    inside = (linear > 0) & (linear < 1)
    slopes = np.stack([t - 1, 1 - 2 * t, t]) * SPANS * inside * u / (2.2 * x.clip(1e-5))
    dense = np.zeros((2, len(x), SPANS + 2))
    for k, parts in enumerate((torch.stack(weights).numpy(), slopes)):
        np.put_along_axis(dense[k], first.numpy()[:, None] + np.arange(3), parts.T, axis=1)
    # A control point is the sum of the steps up to it.
    steps, slopes = dense[..., ::-1].cumsum(-1)[..., ::-1]
    return steps, slopes


def fit_curve(linear: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return first point and steps, which are not negative, that bring linear values (n,) to display ones."""
    weights, _ = _curve_weights(linear)
    system = np.vstack([weights, _STRAIGHT])
    wanted = np.concatenate([target, np.zeros(len(_STRAIGHT))])
    return lsq_linear(system, wanted, (_LOWEST, np.inf)).x


def fit_channel(
    values: np.ndarray, target: np.ndarray, row: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Fit a row of the matrix, an offset and a curve to a channel; robust least squares.

    Gauss-Newton inside the bounds, damped by each number's own effect (Marquardt, SIAM 11(2), 1963), so that
    a step means the same for all; from a closed form.

    Args:
        values: (n, 3) balanced camera colours, linear.
        target: (n,) what the camera made of them, display domain.
        row: where the row starts.

    Returns:
        The row, the offset, the curve's control points.
    """
    channel = _Channel(values, target, row)
    numbers = np.concatenate([row, [0.0], fit_curve(values @ row, target)])
    lowest = np.concatenate([np.full(4, -np.inf), _LOWEST])
    damping = 1e-3
    for _ in range(_STEPS):
        error, slopes = channel.residual(numbers), channel.jacobian(numbers)
        normal, cost = slopes.T @ slopes, error @ error
        while damping < 1e3:
            root = np.linalg.cholesky(normal + damping * np.diag(normal.diagonal() + 1e-9)).T
            wanted = -np.linalg.solve(root.T, slopes.T @ error)
            tried = numbers + lsq_linear(root, wanted, (lowest - numbers - 1e-12, np.inf)).x
            left = channel.residual(tried)
            if left @ left < cost:
                break
            damping *= 10
        else:
            break
        numbers, damping = tried, damping / 5
        if left @ left > cost * (1 - 1e-4):
            break
    return numbers[:3], numbers[3], numbers[4:].cumsum()


class _Channel(NamedTuple):
    """Residuals of three weights, an offset, a curve's first point and its steps, and their derivatives."""

    values: np.ndarray
    target: np.ndarray
    row: np.ndarray

    def residual(self, numbers: np.ndarray) -> np.ndarray:
        weights, _ = _curve_weights(self.values @ numbers[:3] + numbers[3])
        error = (weights @ numbers[4:]).clip(0, 1) - self.target
        anchor = _ANCHOR * (numbers[:4] - [*self.row, 0])
        return np.concatenate([_pull_in(error), anchor, _STRAIGHT @ numbers[4:]])

    def jacobian(self, numbers: np.ndarray) -> np.ndarray:
        weights, slopes = _curve_weights(self.values @ numbers[:3] + numbers[3])
        image = weights @ numbers[4:]
        inside = ((image > 0) & (image < 1)) * _pull_in_slope(image.clip(0, 1) - self.target)
        by_input = (slopes @ numbers[4:] * inside)[:, None]
        data = np.hstack([self.values * by_input, by_input, weights * inside[:, None]])
        anchor = np.hstack([np.diag(_ANCHOR), np.zeros((4, SPANS + 2))])
        return np.vstack([data, anchor, np.pad(_STRAIGHT, ((0, 0), (4, 0)))])


def _pull_in(error: np.ndarray) -> np.ndarray:
    """Return errors whose square grows like a line where they are large (pseudo-Huber)."""
    root = np.sqrt(1 + (error / _ROBUST) ** 2)
    return error * np.sqrt(2 / (root + 1))


def _pull_in_slope(error: np.ndarray) -> np.ndarray:
    root = np.sqrt(1 + (error / _ROBUST) ** 2)
    return np.sqrt((root + 1) / 2) / root
