"""Learn a camera's pipeline from what it made of its own raw data, and judge it where it did not look."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from r2l.camera import Camera
from r2l.isp import PIPELINES, open_pipeline
from r2l.isp import functional as stage
from r2l.isp.demosaic import DEMOSAIC
from r2l.isp.filters import correlate, crop
from r2l.isp.learned import KERNEL, LearnedISP, apply_tone_curve, spline_weights, to_steps
from r2l.isp.pipeline import run
from r2l.learn.alignment import MARGIN, AlignmentError, Blocks, Pair, align, open_picture
from r2l.learn.colours import develop_blocks, fit_channel, fit_curve, psnr, score
from r2l.rawfile import RawFrame, read_raw

# A raw file and the picture that its camera made of it: paths, or what they hold (picture: uint8 (H, W, 3)).
_PairLike = tuple[str | Path | RawFrame, str | Path | np.ndarray]

_FITTED, _JUDGED, _KEPT = 200, 128, 1 / 3  # blocks fitted and judged at most; the part kept for judging
_PIXELS, _ROUNDS = 8_000, 4  # that colours and curves are fitted to; of curves and filters
_FILTERED = 80  # blocks that the filters are fitted to
_MOVED = 0.2  # deviation from which on a pixel doesn't count, display domain


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned of a camera.

    Attributes:
        isp: its pipeline.
        scores: PSNR in dB and mean CIEDE2000 against the camera's pictures on blocks that were not fitted, by
            pipeline: "learned", then the twelve with the camera's calibration.
        pairs: as they were aligned.
        judged: number of these blocks.
    """

    isp: LearnedISP
    scores: pd.DataFrame
    pairs: list[Pair]
    judged: int

    @property
    def gain(self) -> float:
        """Decibels more than the best of the twelve."""
        return float(self.scores.at["learned", "psnr"] - self.scores["psnr"].drop("learned").max())

    def report(self) -> str:
        """Return in words what was learned and how good it is."""
        best = self.scores["psnr"].drop("learned").idxmax()
        lines = [f"{self.isp.camera.name}, demosaicing {self.isp.demosaic}"]
        for name in ("learned", best):
            decibels, colour = self.scores.loc[name, ["psnr", "ciede2000"]]
            lines.append(f"{name}: {decibels:.2f} dB, CIEDE2000 {colour:.2f}")
        lines.append(f"judged on {self.judged} blocks that were not fitted")
        gains = ", ".join(f"{gain:.3f}" for gain in self.isp.white_balance.tolist())
        lines += [f"white balance {gains}", "colour matrix"]
        lines += ["  " + " ".join(f"{x:7.3f}" for x in row) for row in self.isp.colour_matrix.tolist()]
        for number, pair in enumerate(self.pairs, 1):
            notes = [f"begins at row {pair.shift[0]}, column {pair.shift[1]} of the raw frame"]
            notes += [f"turned by {90 * pair.turned} degrees"] if pair.turned else []
            notes += [f"enlarged by {pair.scale:g}: it is softer"] if pair.scale != 1 else []
            notes += [f"lens correction of {pair.lens:.1f} pixels in the corners"] if pair.lens else []
            lines.append(f"pair {number}: {'; '.join(notes)}; left out {pair.left_out:.0%}")
        return "\n".join(lines)


def learn_pipeline(pairs: Sequence[_PairLike], *, seed: int = 0) -> Learned:
    """Learn what a camera does to its raw data from pairs of a raw file and the camera's own JPEG.

    First the colours, where little happens around a pixel: for each channel three weights, an offset and a
    rising curve, by robust least squares. Gains are those for which the three curves agree: what comes out
    grey is balanced. Then, for each demosaicing, curves and the filters of luma and chroma in turn, each in
    closed form; the best demosaicing is kept. Two thirds of the blocks are fitted, the others judge.

    Where the shutter, the lens or the firmware did something that depends on the place in the frame or on the
    scene (lens correction, local contrast), the pipeline can't: it shows as a low score.

    >>> from r2l.datasets import SyntheticDrone
    >>> from r2l.camera import DRONE
    >>> town = torch.cat([SyntheticDrone(3, seed=1, size=256)[i]["raw"] for i in range(3)], -1)
    >>> frame = RawFrame(town[0].numpy(), DRONE)
    >>> camera = open_pipeline("bi,u,ga", DRONE)  # plays the camera
    >>> picture = (camera(frame.tensor())[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    >>> learn_pipeline([(frame, picture)]).isp
    LearnedISP(bilinear, Hasselblad L1D-20c (Raw-Drone))

    Args:
        pairs: of one camera with one setting of its pictures. With several, each is balanced as it was shot.
        seed: of the blocks and pixels that are drawn.

    Raises:
        AlignmentError: a picture that doesn't belong to its raw file, or shows nothing to learn from.
        RawFileError: no usable raw file.
        ValueError: no pairs, or pairs of several cameras.
    """
    if not pairs:
        raise ValueError("no pairs to learn from: give raw files and the JPEGs of the same exposures")
    aligned = [_open(*pair) for pair in pairs]
    camera = aligned[0].frame.camera
    if len(names := sorted({pair.frame.camera.name for pair in aligned})) > 1:
        raise ValueError(f"pairs of several cameras: {', '.join(names)}; learn each by itself")
    rng = np.random.default_rng(seed)
    fitted, judged = _split(aligned, camera, rng)
    if min(fitted.seen.sum(), judged.seen.sum()) < _PIXELS:
        reason = "almost nothing is left to learn from: it is small, or most of it saturated"
        raise AlignmentError("pairs", reason, "Give larger or darker ones, or more of them")
    start = _start(fitted, camera, rng)
    part = Blocks(*(values[::2] for values in fitted))
    isps = [_refine(start, part, camera, method, rng, rounds=2) for method in DEMOSAIC]
    best = max(isps, key=lambda isp: psnr(develop_blocks(isp, part.raw), *part[1:]))
    isp = _refine(start, fitted, camera, best.demosaic, rng, _ROUNDS)
    pipelines = {"learned": isp, **{code: open_pipeline(code, camera) for code in PIPELINES}}
    views = {name: develop_blocks(pipeline, judged.raw) for name, pipeline in pipelines.items()}
    return Learned(isp, score(views, *judged[1:]), aligned, len(judged.raw))


def _open(raw: str | Path | RawFrame, picture: str | Path | np.ndarray) -> Pair:
    frame = raw if isinstance(raw, RawFrame) else read_raw(raw)
    if isinstance(picture, np.ndarray):
        return align(frame, picture)
    return align(frame, open_picture(picture), str(picture))


def _split(pairs: Sequence[Pair], camera: Camera, rng: np.random.Generator) -> list[Blocks]:
    """Return blocks to fit and blocks to judge by, of each pair as many."""
    parts: tuple[list[Blocks], list[Blocks]] = ([], [])
    for pair in pairs:
        order = rng.permutation(len(pair.corners))
        kept = max(1, round(_KEPT * len(order)))
        for part, numbers, most in ((parts[0], order[kept:], _FITTED), (parts[1], order[:kept], _JUDGED)):
            part.append(pair.blocks(numbers[: max(1, most // len(pairs))], camera))
    return [Blocks(*map(torch.cat, zip(*part, strict=True))) for part in parts]


class _Colours(NamedTuple):
    """Balanced camera colours to display: gains, rows of a matrix, offsets, and control points of curves."""

    gains: np.ndarray
    matrix: np.ndarray
    offset: np.ndarray
    points: np.ndarray


def _demosaiced(blocks: Blocks, camera: Camera, gains: np.ndarray, method: str) -> Tensor:
    """Return balanced, cut and demosaiced blocks, with what the filters see around them."""
    isp = LearnedISP(camera, method)
    with torch.inference_mode():
        isp.white_balance.copy_(torch.from_numpy(gains))
        parts = [run(isp.listed()[:4], part) for part in blocks.raw.split(32)]
    return crop(torch.cat(parts), MARGIN - KERNEL // 2)


def _start(blocks: Blocks, camera: Camera, rng: np.random.Generator) -> _Colours:
    """Fit the colours where little happens around a pixel, so that filters and demosaicing don't matter."""
    gains = np.abs(camera.white_balance)
    matrix = np.array(stage.signed_columns(camera.colour_matrix, camera.white_balance))
    values = _demosaiced(blocks, camera, gains, "bilinear")
    y = stage.luma(values)
    mean, square, smooth = (F.avg_pool2d(v, KERNEL, stride=1) for v in (y, y * y, values))
    busy = (square - mean**2).clamp(min=0).sqrt() / (mean.abs() + 0.01)
    quiet = blocks.seen & (busy <= busy[blocks.seen].median())
    # Means on both sides: noise in what is fitted by would pull the matrix toward grey.
    means = crop(smooth, KERNEL // 2), F.avg_pool2d(blocks.target, KERNEL, stride=1)
    colours, wanted = _sample(*means, crop(quiet, KERNEL // 2), rng)
    rows = [fit_channel(colours, wanted[:, c], matrix[c]) for c in range(3)]
    return _balanced(_Colours(gains, *map(np.stack, zip(*rows, strict=True))), wanted)


def _refine(
    fit: _Colours, blocks: Blocks, camera: Camera, method: str, rng: np.random.Generator, rounds: int
) -> LearnedISP:
    """Fit curves and filters in turn, each to what the other leaves."""
    values = _demosaiced(blocks, camera, fit.gains, method)
    left, where = blocks.target, blocks.seen
    for number in range(1, rounds + 1):
        colours, wanted = _sample(crop(values, KERNEL // 2), left, where, rng)
        linear = colours @ fit.matrix.T + fit.offset
        points = [fit_curve(linear[:, c], wanted[:, c]).cumsum() for c in range(3)]
        fit = fit._replace(points=np.stack(points))
        image = _apply(fit, values)
        kernels, y, inner = _fit_filters(image, blocks), stage.luma(image), crop(image, KERNEL // 2)
        if number == rounds:
            break  # nothing follows that would ask what is left
        filtered = sum(correlate(x, k.tolist(), None) for x, k in zip((y, image - y), kernels, strict=True))
        left = (blocks.target - (filtered - inner)).clamp(0, 1)
        where = blocks.seen & ((inner - left).abs().amax(1, keepdim=True) < _MOVED)
    return _as_isp(fit, kernels, camera, method)


def _sample(
    values: Tensor, target: Tensor, where: Tensor, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pixels: their colours in and out, (n, 3) each."""
    pool = np.flatnonzero(where[:, 0].numpy().ravel())
    drawn = torch.from_numpy(rng.choice(pool, min(_PIXELS, len(pool)), replace=False))
    return tuple(x.movedim(1, -1).reshape(-1, 3)[drawn].double().numpy() for x in (values, target))


def _balanced(fit: _Colours, target: np.ndarray) -> _Colours:
    """Choose the gains for which grey comes out grey: there the three curves agree, where all were seen.

    The scale of a row and that of its curve's input are one number; so are gains and columns.
    """
    # The brighter half: below, what is taken for black decides.
    lowest, highest = np.quantile(target, (0.5, 0.98), axis=0)
    levels = np.linspace(lowest.max(), highest.min(), 9)
    u = np.linspace(0, 1, 512)
    first, weights = spline_weights(torch.from_numpy(u))
    reached = []
    for points in fit.points:
        curve = sum(points[first.numpy() + k] * w.numpy() for k, w in enumerate(weights))
        reached.append(np.interp(levels, curve, u) ** 2.2)
    scale = np.exp(np.log(np.maximum(reached, 1e-4)).mean(axis=1))
    matrix = fit.matrix * (scale[1] / scale)[:, None]
    neutral = np.linalg.solve(matrix, np.ones(3))
    if levels[0] >= levels[-1] or not (neutral > 0).all():
        return fit  # too little of all colours to tell
    return fit._replace(
        gains=fit.gains * neutral[1] / neutral, matrix=matrix * neutral, offset=fit.offset * scale[1] / scale
    )


def _apply(fit: _Colours, values: Tensor) -> Tensor:
    image = stage.apply_colour_matrix(values, torch.from_numpy(fit.matrix).float())
    offset = torch.from_numpy(fit.offset).float().reshape(3, 1, 1)
    return apply_tone_curve(image + offset, torch.from_numpy(fit.points))


def _fit_filters(image: Tensor, blocks: Blocks) -> list[Tensor]:
    """Return the filters of luma and of chroma that bring an image closest: linear least squares."""
    y, wanted = stage.luma(image), stage.luma(blocks.target)
    plain = blocks.seen & ((blocks.target > 0.01) & (blocks.target < 0.99)).all(1, keepdim=True)
    kernels, size, middle = [], KERNEL**2, KERNEL**2 // 2
    for planes, aims in ((y, wanted), (image - y, blocks.target - wanted)):
        normal, moment = torch.zeros(size, size).double(), torch.zeros(size).double()
        for part, aim, where in list(zip(planes, aims, plain, strict=True))[:_FILTERED]:
            near = part.unfold(1, KERNEL, 1).unfold(2, KERNEL, 1).permute(0, 3, 4, 1, 2)
            patches = near.reshape(len(part), size, -1)
            centre = patches[:, middle : middle + 1]
            rest = aim.flatten(1)[:, None] - centre
            weight = where.flatten()[None, None] * (rest.abs() < _MOVED)
            steps = (patches - centre) * weight
            normal += (steps @ steps.mT).sum(0).double()
            moment += (steps @ (rest * weight).mT).sum((0, 2)).double()
        kernel = torch.linalg.solve(normal + 1e-4 * normal.diagonal().mean() * torch.eye(size), moment)
        kernel[middle] = 1 - kernel.sum() + kernel[middle]
        kernels.append(kernel.reshape(KERNEL, KERNEL).float())
    return kernels


def _as_isp(fit: _Colours, kernels: list[Tensor], camera: Camera, method: str) -> LearnedISP:
    """Return a pipeline of these numbers; what the curves' inputs are offset by becomes a black level."""
    isp, black = LearnedISP(camera, method), np.array(camera.black_level)
    dark = -np.linalg.solve(fit.matrix, fit.offset) / fit.gains
    numbers = {
        "black_level": black + dark[list(camera.cfa.value)] * (camera.white_level - black),
        "white_balance": fit.gains,
        "colour_matrix": fit.matrix * (1 - dark),
        "tone_curve": to_steps(torch.from_numpy(fit.points)),
        "sharpening_kernel": kernels[0],
        "blur_kernel": kernels[1],
    }
    with torch.no_grad():
        for name, value in numbers.items():
            isp.get_parameter(name).copy_(torch.as_tensor(value))
    return isp
