"""A shift detector: does a stream of images come from the pipeline that a model was trained on? No labels.

Each image is described by a few numbers, either statistics of the picture or what the model answers to it
(Lipton et al., "Detecting and Correcting for Label Shift with Black Box Predictors", ICML 2018; Rabanser et
al., "Failing Loudly: An Empirical Study of Methods for Detecting Dataset Shift", NeurIPS 2019, finds these
the best of many). Two samples of them are compared by `energy_test`; which of them moved is told by
Kolmogorov-Smirnov tests on the means of groups.

`ShiftDetector` is for a stream of one's own; `detection_rates` asks of a whole train x test matrix which
changes of pipeline would have been noticed before the score fell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn import functional as F

from r2l.datasets.frames import Frames
from r2l.drift.matrix import MatrixSummary
from r2l.drift.statistics import holm
from r2l.files import R2LError, check_groups, choose
from r2l.progress import progress_bar
from r2l.training.predict import Trained, on_device

_CHANNELS = ("red", "green", "blue")
_BATCH = 64


def image_features(images: Tensor, model: nn.Module | None = None) -> pd.DataFrame:
    """Return numbers that describe each image: its statistics, or what a model answers to it.

    One row an image, columns named. Without a model from images (N, 3, H, W), display domain, to logits the
    pictures are described: of each channel mean, standard deviation, share of black and of white, contrast
    between neighbours (logarithm of the mean absolute Laplacian) and between every other pixel, and how
    channels go together (correlations). Other shapes, pictures below 5 x 5, what is not finite: a ValueError.
    """
    fits = images.ndim == 4 and images.shape[1] == 3 and (model is not None or min(images.shape[2:]) >= 5)
    if not fits or not images.isfinite().all():
        expected = "expected images (N, 3, H, W) of finite numbers, of 5 x 5 pixels or more without a model"
        raise ValueError(f"{expected}, got {tuple(images.shape)}: enlarge small ones, or pass a model")
    with torch.no_grad(), on_device(model or nn.Identity()) as device:
        batches = images.split(_BATCH)
        parts = [_picture(b) if model is None else _answers(model(b.to(device))) for b in batches]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return pd.DataFrame({name: values.cpu().double().numpy() for name, values in columns.items()})


def _picture(images: Tensor) -> dict[str, Tensor]:
    flat = images.flatten(2)
    kernels = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]]).to(images).expand(3, 1, 3, 3)
    per_channel = {"mean": flat.mean(2), "deviation": flat.std(2)}
    per_channel |= {"black": (flat <= 1e-3).float().mean(2), "white": (flat >= 1 - 1e-3).float().mean(2)}
    for name, step in (("detail", 1), ("coarse detail", 2)):
        edges = F.conv2d(images, kernels, dilation=step, groups=3).abs().flatten(2).mean(2)
        per_channel[name] = edges.clamp_min(1e-6).log()
    columns = {f"{n}, {c}": v[:, i] for n, v in per_channel.items() for i, c in enumerate(_CHANNELS)}
    centred = flat - flat.mean(2, keepdim=True)
    # Where a channel is flat, what rounding leaves of it goes together with nothing.
    unit = centred / centred.norm(dim=2, keepdim=True).clamp_min(1e-5 * flat.shape[2] ** 0.5)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        columns[f"correlation, {_CHANNELS[a]} and {_CHANNELS[b]}"] = (unit[:, a] * unit[:, b]).sum(1)
    return columns


def _answers(logits: Tensor) -> dict[str, Tensor]:
    """What a model answers: log-probabilities of the classes, or of masks shares and sureness."""
    if logits.ndim == 2:
        return {f"class {i}": v for i, v in enumerate(logits.log_softmax(1).clamp_min(-20).unbind(1))}
    if logits.shape[1] > 1:
        shares = logits.softmax(1).flatten(2)
        columns = {f"share of class {i}": share.mean(1) for i, share in enumerate(shares.unbind(1))}
        return columns | {"unsure": 1 - shares.amax(1).mean(1)}
    shares = logits.flatten(1).sigmoid()
    unsure = (shares * (1 - shares)).mean(1)
    return {"foreground": shares.mean(1), "unsure": unsure, "largest": shares.amax(1)}


def _least_p(n_reference: int, n_stream: int, draws: int) -> float:
    """Return the least p-value: of the ways to deal groups out, or as many as are drawn, one was observed."""
    reached = 1 + (n_reference == n_stream)  # of equal numbers its mirror image, as far apart, is another
    return max(reached / comb(n_reference + n_stream, n_stream), 1 / (draws + 1))


def _thinned(*sides: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return which images stay if no group may have more than is usual (the median) on the smaller side."""
    kept, rng, sides = [], np.random.default_rng((seed, 1)), [*map(check_groups, sides)]
    cap = min(int(np.median(np.unique(side, return_counts=True)[1])) for side in sides)
    for side in sides:
        order = rng.permutation(len(side))
        kept.append(np.sort(order[pd.Series(side[order]).groupby(side[order]).cumcount().to_numpy() < cap]))
    return kept


def energy_test(
    reference: np.ndarray,
    stream: np.ndarray,
    reference_groups: np.ndarray,
    stream_groups: np.ndarray,
    alpha: float = 0.05,
    draws: int = 999,
    seed: int = 0,
) -> tuple[float, float]:
    """Return energy distance, without bias, and its p-value under permutation of whole groups.

    Images of one slide zone or photograph hang together, and a test that took them for independent would cry
    wolf. Under no drift groups of one size are exchangeable, so that the rate of false alarms is what was
    asked for, whatever the numbers, (N, F) and (M, F), are. Groups of other sizes are not: so larger ones are
    thinned to the usual size of the smaller side, all weigh the same, and none is compared with itself.
    Numbers are standardised over both samples together; a group of the stream is another one than that of the
    same name in the reference. (Szekely and Rizzo, "Testing for Equal Distributions in High Dimension",
    InterStat 2004.) So few groups that no p-value is at most ``alpha`` are a ValueError.
    """
    kept, kept_stream = _thinned(reference_groups, stream_groups, seed=seed)
    both = np.concatenate([reference[kept], stream[kept_stream]])
    groups = [f"0 {g}" for g in reference_groups[kept]] + [f"1 {g}" for g in stream_groups[kept_stream]]
    names, members = np.unique(groups, return_inverse=True)
    belongs = np.eye(len(names))[members]
    within = np.unique(members[len(kept) :])
    outside = np.setdiff1d(np.arange(len(names)), within)
    if (least := _least_p(len(outside), len(within), draws)) > alpha:
        told = f"{len(outside)} and {len(within)} groups with {draws} permutations"
        remedy = "more groups, more permutations, or a level above it"
        raise ValueError(f"{told} give no p-value below {least:.2g}; {remedy}")
    scaled = (both - both.mean(axis=0)) / np.where(both.std(axis=0) > 1e-12, both.std(axis=0), 1)
    belongs /= belongs.sum(axis=0)
    np.fill_diagonal(means := belongs.T @ cdist(scaled, scaled) @ belongs, 0)

    def apart(one: np.ndarray, two: np.ndarray, itself: int = 0) -> np.ndarray:
        # Mean distance of the groups marked 1 in ``one`` to (other) ones marked in ``two``, (..., G).
        pairs = one.sum(axis=-1) * (two.sum(axis=-1) - itself)
        return np.einsum("...g,...g->...", one @ means, two) / np.maximum(pairs, 1)

    def energy_distance(drawn: np.ndarray, rest: np.ndarray, axis: int = -1) -> np.ndarray:
        inside = np.zeros((*drawn.shape[:-1], len(names)))
        np.put_along_axis(inside, drawn.astype(int), 1.0, axis=-1)
        others = 1 - inside
        return 2 * apart(inside, others) - apart(inside, inside, 1) - apart(others, others, 1)

    if len(within) == 1:  # which scipy refuses: each group in the place of the stream's
        each = energy_distance(np.arange(len(names))[:, None], outside)
        distance = each[within[0]]
        return float(distance), float(np.mean(each >= distance - 1e-12 * np.abs(each).max()))
    options = {"alternative": "greater", "n_resamples": draws, "rng": np.random.default_rng(seed)}
    test = stats.permutation_test((within, outside), energy_distance, vectorized=True, axis=-1, **options)
    return float(test.statistic), float(test.pvalue)


@dataclass(frozen=True)
class ShiftTest:
    """What a `ShiftDetector` says of a stream.

    Attributes:
        p_value, raised: probability of as large a distance if the stream came from the same source, (0, 1],
            and whether it is at most the level asked for.
        distance: see `energy_test`; 0 on average, if the source is the same (of one group, above it).
        statistics: one row a number, the most telling first: mean of the ``reference`` and of the ``stream``,
            ``ks`` (largest distance of the distributions of group means, 0 to 1), ``p``, ``p_holm`` (adjusted
            for how many there are), ``shift`` of the mean in standard deviations of both together.
        n_images, n_groups: in the stream.
    """

    p_value: float
    raised: bool
    distance: float
    statistics: pd.DataFrame
    n_images: int
    n_groups: int

    def __str__(self) -> str:
        verdict, first = "ALARM: another source" if self.raised else "no alarm", self.statistics.iloc[0]
        told = f"p = {self.p_value:.3f}, {self.n_images} images in {self.n_groups} groups"
        moved = f"{first.name}, {first['reference']:.3g} to {first['stream']:.3g}"
        return f"{verdict} ({told}); moved most: {moved}"


@dataclass(frozen=True)
class ShiftDetector:
    """Remembers what images looked like; `fit` makes it, `test` tells whether others look the same.

    >>> images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> detector = ShiftDetector.fit(images[:20], groups=2)  # neighbours by twos
    >>> [detector.test(stream, groups=2).raised for stream in (images[20:], 0.9 * images[20:])]
    [False, True]
    """

    reference: pd.DataFrame
    groups: np.ndarray
    model: nn.Module | None = None

    @classmethod
    def fit(
        cls, images: Tensor, model: nn.Module | None = None, groups: np.ndarray | int | None = None
    ) -> ShiftDetector:
        """Remember reference images.

        Args:
            images: (N, 3, H, W), display domain, as the pipeline develops them; with a model, images that it
                was *not* trained on: its answers to those that it was are another thing.
            model: what `fit` returned or any module from images to logits (B, C) or (B, 1, H, W).
            groups: group of each image, (N,), such as its slide or photo; or a number, so many neighbours in
                a row being one group; 1 says that images are independent.

        Raises:
            R2LError, ValueError: no groups, fewer than two, or not one for each image.
        """
        return cls(image_features(images, model), _checked(groups, len(images)), model)

    def test(
        self,
        images: Tensor,
        groups: np.ndarray | int | None = None,
        *,
        alpha: float = 0.05,
        draws: int = 999,
        seed: int = 0,
    ) -> ShiftTest:
        """Say whether a stream of images (M, 3, H, W), display domain, comes from another source.

        Args:
            groups: as in `fit`; other groups than the reference's.
            alpha: rate of false alarms that is accepted.
            draws, seed: of permutations; the p-value is at least 1 / (draws + 1).

        Raises:
            R2LError, ValueError: as `fit`; or too few groups for any p-value at most ``alpha``.
        """
        stream, groups = image_features(images, self.model), _checked(groups, len(images), least=1)
        kept, kept_stream = _thinned(self.groups, groups, seed=seed)
        parts = self.reference.iloc[kept], stream.iloc[kept_stream]
        names = self.groups[kept], groups[kept_stream]
        distance, p_value = energy_test(*(part.to_numpy() for part in parts), *names, alpha, draws, seed)
        raised, table = p_value <= alpha + 1e-12, _which(*parts, *names)
        return ShiftTest(p_value, raised, distance, table, len(images), len(np.unique(groups)))


def _checked(groups: np.ndarray | int | None, n_images: int, least: int = 2) -> np.ndarray:
    if groups is None:
        why = "not told; images of one slide or photo, or taken in a row, hang together, and a test that "
        why += "takes them for independent raises false alarms"
        remedy = "Pass groups=, one name an image; or a number, so many neighbours being one group"
        raise R2LError("groups", why, f"{remedy} (1: independent images)")
    neighbours = isinstance(groups, int) and groups > 0
    groups = check_groups(np.arange(n_images) // groups if neighbours else groups)
    if (told := len(np.unique(groups))) < least or groups.shape != (n_images,):
        expected = f"expected a group for each of {n_images} images and {least} groups or more"
        raise ValueError(f"{expected}, got {groups.shape} in {told} groups")
    return groups


def _which(
    reference: pd.DataFrame, stream: pd.DataFrame, groups: np.ndarray, stream_groups: np.ndarray
) -> pd.DataFrame:
    """Tell which numbers moved, by Kolmogorov-Smirnov tests on the means of the groups."""
    before, after = reference.groupby(groups).mean(), stream.groupby(stream_groups).mean()
    tests = [stats.ks_2samp(before[name], after[name]) for name in reference]
    table = pd.DataFrame({"reference": reference.mean(), "stream": stream.mean()})
    table[["ks", "p"]] = [(test.statistic, test.pvalue) for test in tests]
    table["p_holm"] = holm(np.clip(table["p"], 0, 1))
    # Of both together: a number that never varies in the reference still has a spread to count in.
    spread = pd.concat([reference, stream]).std().clip(lower=1e-12)
    shift = (table["stream"] - table["reference"]).abs() / spread
    return table.assign(shift=shift).sort_values(["p", "shift"], ascending=[True, False])


def detection_rates(
    views: Frames,
    summary: MatrixSummary,
    n_images: Sequence[int] = (10, 20, 50, 100),
    *,
    models: Sequence[Trained] | None = None,
    repeats: int = 20,
    alpha: float = 0.05,
    draws: int = 199,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Send streams of other pipelines to a detector that knows a model's own, and say what it notices.

    Each time the groups are dealt out anew: half of them are the reference, as the model's own pipeline
    develops them; ``n_images`` of the others (whole groups, as far as they go) are the stream, developed by
    another pipeline, or by the same, which gives the rate of false alarms.

    Args:
        summary: what `summarise` returned for the same pipelines; tells where the score fell.
        n_images, repeats: lengths of the streams, and how many of each a cell.
        models: whose answers are watched, one for each pipeline (the first is taken) on the images that it
            has not seen; without, statistics of the pictures are watched.
        alpha, draws, seed: see `ShiftDetector.test`; the seed is of the dealing too.

    Returns:
        One row a cell and length: ``train``, ``test``, ``n_images``, ``raised`` (share of streams that raised
        the alarm), ``streams`` (how many were long enough), ``drop`` (loss of score), ``fell`` (whether it is
        significantly below the row's diagonal), ``verdict``: "noticed" or "missed" where the score fell (half
        of the streams decide), else "early warning" or "quiet"; or "stream too short".
    """
    if not n_images or min(n_images) < 2 or repeats < 1:
        raise ValueError("expected lengths of 2 images or more, and a repeat")
    cells = summary.cells
    views.require([*dict.fromkeys([*cells["train"], *cells["test"]])])
    rows, of_code = [], {trained.code: trained for trained in reversed(models or [])}
    with progress_bar(total=len(cells), desc="watching", disable=not progress) as bar:
        for train, part in cells.groupby("train", sort=False):
            model, pool = None, np.arange(len(views))
            if models is not None:
                trained = choose("model of", train, of_code)
                model, pool = trained.module, np.asarray(trained.test)
            groups = views.groups[pool]
            seen = {test: image_features(views.images[test][pool], model).to_numpy() for test in part["test"]}
            for cell in part.itertuples():
                raised: dict[int, list[bool]] = {length: [] for length in n_images}
                for length, number, kept, stream in _deals(groups, n_images, repeats, seed):
                    parts = [len(np.unique(groups[which])) for which in (kept, stream)]
                    if len(stream) < length or _least_p(*parts, draws) > alpha:
                        continue
                    samples = seen[train][kept], seen[cell.test][stream]
                    _, p = energy_test(*samples, groups[kept], groups[stream], alpha, draws, number)
                    raised[length].append(p <= alpha + 1e-12)
                fell = bool(cell.significant and cell.difference < 0)
                for length, alarms in raised.items():
                    share = float(np.mean(alarms)) if alarms else np.nan
                    rows.append((train, cell.test, length, share, len(alarms), -cell.difference, fell))
                bar.update()
    table = pd.DataFrame(rows, columns=["train", "test", "n_images", "raised", "streams", "drop", "fell"])
    noticed, fell = table["raised"] >= 0.5, table["fell"]
    cases = [table["streams"] == 0, fell & noticed, fell, noticed]
    words = ["stream too short", "noticed", "missed", "early warning"]
    return table.assign(verdict=np.select(cases, words, "quiet"))


def _deals(
    groups: np.ndarray, lengths: Sequence[int], repeats: int, seed: int
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Yield length, seed of the test, images of the reference, and of a stream; the same for every cell."""
    names = np.unique(groups)
    for repeat in range(repeats):
        dealt = np.random.default_rng((seed, repeat)).permutation(names)
        half = len(dealt) // 2
        kept = np.flatnonzero(np.isin(groups, dealt[:half]))
        rest = np.concatenate([np.flatnonzero(groups == name) for name in dealt[half:]])
        for length in lengths:
            yield length, seed + repeat, kept, rest[:length]
