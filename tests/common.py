"""What many tests share: cameras and layouts to try, mosaics, and checks that are said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from r2l.camera import CFA, DRONE, MICROSCOPE

CAMERAS = pytest.mark.parametrize("camera", [MICROSCOPE, DRONE], ids=["microscope", "drone"])
LAYOUTS = pytest.mark.parametrize("cfa", CFA, ids=lambda c: c.name)


def refused(message, call, /, *arguments, error=ValueError, **options):
    """Hold that a call ends in an error whose text matches."""
    with pytest.raises(error, match=message):
        call(*arguments, **options)


@contextmanager
def unchanged(*things) -> Iterator[None]:
    """Hold that tensors, modules (weights and whether they train) and torch's chance are what they were."""
    modules = [thing for thing in things if isinstance(thing, torch.nn.Module)]

    def state():
        values = [v for module in modules for v in module.state_dict().values()]
        return [torch.get_rng_state(), *values, *(t for t in things if isinstance(t, torch.Tensor))]

    def modes():
        return [part.training for module in modules for part in module.modules()]

    before, training = [value.detach().clone() for value in state()], modes()
    yield
    assert modes() == training
    assert all(torch.equal(*pair) for pair in zip(before, state(), strict=True))


def natural_mosaic(camera, height=74, width=90, seed=0) -> np.ndarray:
    """A mosaic with edges, gradients, texture and noise, within the camera's usual range."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    scene = 0.4 + 0.2 * np.sin(x / 7) * np.cos(y / 5) + 0.25 * ((x - y) % 29 > 14)
    scene = scene + 0.05 * rng.standard_normal((height, width))
    # The channels of the two cameras differ by up to a factor of eight: follow their gains.
    gains = np.abs(np.array(camera.colour_matrix) @ np.diag(camera.white_balance)).sum(1)
    weights = (gains.min() / gains)[list(camera.cfa.value)].reshape(2, 2)
    scene = scene * np.tile(weights, (height // 2, width // 2))
    black = np.tile(np.reshape(camera.black_level, (2, 2)), (height // 2, width // 2))
    return np.clip(black + 0.6 * scene, 0, 1)


def natural(camera, *size, dtype=torch.float64):
    """The same as a tensor (1, 1, H, W)."""
    return torch.from_numpy(natural_mosaic(camera, *size)).to(dtype)[None, None]


def drawn(figure):
    """Render, so that a figure that can't be drawn, or whose letters are too small, fails here."""
    figure.canvas.draw()
    assert figure.dpi == 100
    assert figure.get_figwidth() < 10.5, "inches; pages shrink what is wider"
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    assert shown
    assert min(text.get_size() for text in shown) >= 9, "points"
    return figure


def gradcheck_parameters(isp, raw, **tolerance) -> bool:
    """Hold slopes against differences: in an ISP's parameters, and in raw data that ask for theirs."""
    names, values = zip(*isp.named_parameters(), strict=True)

    def develop(raw, *values):
        return torch.func.functional_call(isp, dict(zip(names, values, strict=True)), (raw,))

    values = (value.detach().requires_grad_() for value in values)
    return torch.autograd.gradcheck(develop, (raw, *values), **tolerance)
