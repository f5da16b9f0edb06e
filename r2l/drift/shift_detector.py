"""A shift detector: does a stream of images come from the pipeline that a model was trained on? No labels.

Each image is described by a few numbers, either statistics of the picture or what the model answers to it
(Lipton et al., "Detecting and Correcting for Label Shift with Black Box Predictors", ICML 2018; Rabanser et
al., "Failing Loudly: An Empirical Study of Methods for Detecting Dataset Shift", NeurIPS 2019, finds these
the best of many). Two samples of them are compared by `r2l.drift.two_sample.energy_test`, which permutes
whole groups: images of one slide zone or photograph hang together, and a test that took them for independent
would cry wolf. Which of them moved is told by Kolmogorov-Smirnov tests on the groups' means.

`ShiftDetector` is for a stream of one's own; `detection_rates` asks of a whole train x test matrix which
changes of pipeline would have been noticed before the score fell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor, nn

from r2l.datasets.frames import Frames
from r2l.drift.matrix import MatrixSummary
from r2l.drift.statistics import holm
from r2l.drift.two_sample import energy_test, image_features, least_p, thinned
from r2l.files import R2LError
from r2l.progress import progress_bar
from r2l.training.predict import Trained


@dataclass(frozen=True)
class ShiftTest:
    """What a `ShiftDetector` says of a stream.

    Attributes:
        p_value: probability of as large a distance if the stream came from the same source, (0, 1].
        raised: whether it is at most the level asked for.
        distance: energy distance of the standardised numbers; 0 on average, if the source is the same.
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
        verdict = "ALARM: another source" if self.raised else "no alarm"
        first = self.statistics.iloc[0]
        return (
            f"{verdict} (p = {self.p_value:.3f}, {self.n_images} images in {self.n_groups} groups); "
            f"moved most: {first.name}, {first['reference']:.3g} to {first['stream']:.3g}"
        )


@dataclass(frozen=True)
class ShiftDetector:
    """Remembers what images looked like; `fit` makes it, `test` tells whether others look the same.

    Attributes:
        reference: numbers of the reference images (N, F).
        groups: group of each, (N,).
        model: whose answers are compared; None compares pictures.
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
            R2LError: no groups: they have to be told.
            ValueError: fewer than two groups, or another number of groups than of images.
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
            images: the stream.
            groups: as in `fit`; other groups than the reference's.
            alpha: rate of false alarms that is accepted.
            draws: permutations; the p-value is at least 1 / (draws + 1).
            seed: of the permutations.

        Raises:
            R2LError: no groups.
            ValueError: too few groups for any p-value at most ``alpha``, or groups that do not fit.
        """
        stream, groups = image_features(images, self.model), _checked(groups, len(images), least=1)
        kept = thinned(self.groups, groups, seed)
        parts = [self.reference.iloc[kept[0]], stream.iloc[kept[1]]]
        names = self.groups[kept[0]], groups[kept[1]]
        numbers = [part.to_numpy() for part in parts]
        distance, p_value = energy_test(*numbers, *names, alpha, draws, seed)
        table = _which(*parts, *names)
        raised = p_value <= alpha + 1e-12
        return ShiftTest(p_value, raised, distance, table, len(images), len(np.unique(groups)))


def _checked(groups: np.ndarray | int | None, n_images: int, least: int = 2) -> np.ndarray:
    if groups is None:
        raise R2LError(
            "groups",
            "not told; images of one slide or photo, or taken in a row, hang together, and a test that takes "
            "them for independent raises false alarms",
            "Pass groups=, one name an image; or a number, so many neighbours being one group (1: "
            "independent images)",
        )
    if isinstance(groups, int) and groups > 0:
        groups = np.arange(n_images) // groups
    groups = np.asarray(groups)
    if groups.shape != (n_images,) or len(np.unique(groups)) < least:
        raise ValueError(
            f"expected a group for each of {n_images} images and {least} groups or more, "
            f"got {groups.shape} in {len(np.unique(groups))} groups"
        )
    return groups


def _which(
    reference: pd.DataFrame, stream: pd.DataFrame, groups: np.ndarray, stream_groups: np.ndarray
) -> pd.DataFrame:
    """Tell which numbers moved, by Kolmogorov-Smirnov tests on the means of the groups."""
    before, after = reference.groupby(groups).mean(), stream.groupby(stream_groups).mean()
    tests = [stats.ks_2samp(before[name], after[name]) for name in reference]
    table = pd.DataFrame({"reference": reference.mean(), "stream": stream.mean()})
    table = table.assign(ks=[test.statistic for test in tests], p=[test.pvalue for test in tests])
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
        views: developed images.
        summary: what `summarise` returned for the same pipelines; tells where the score fell.
        n_images: lengths of the streams.
        models: whose answers are watched, one for each pipeline (the first is taken) on the images that it
            has not seen; without, statistics of the pictures are watched.
        repeats: streams a cell and length.
        alpha, draws, seed: see `ShiftDetector.test`; the seed is of the dealing too.

    Returns:
        One row a cell and length: ``train``, ``test``, ``n_images``, ``raised`` (share of streams that raised
        the alarm), ``streams`` (how many were long enough), ``drop`` (loss of score), ``fell`` (whether it is
        significantly below the row's diagonal), ``verdict``: "noticed" or "missed" where the score fell (half
        of the streams decide), else "early warning" or "quiet"; or "stream too short".

    Raises:
        ValueError: no length, a pipeline that ``views`` or ``models`` lack, or too few groups.
    """
    if not n_images or min(n_images) < 2 or repeats < 1:
        raise ValueError("expected lengths of 2 images or more, and a repeat")
    cells = summary.cells
    views.require([*dict.fromkeys([*cells["train"], *cells["test"]])])
    rows, of_code = [], {trained.code: trained for trained in reversed(models or [])}
    with progress_bar(total=len(cells), desc="watching", disable=not progress) as bar:
        for train, part in cells.groupby("train", sort=False):
            if models is not None and train not in of_code:
                raise ValueError(f"no model of {train!r} among {sorted(of_code)}")
            model = of_code[train].module if models is not None else None
            pool = np.asarray(of_code[train].test) if models is not None else np.arange(len(views))
            groups = views.groups[pool]
            seen = {test: image_features(views.images[test][pool], model).to_numpy() for test in part["test"]}
            for cell in part.itertuples():
                raised: dict[int, list[bool]] = {length: [] for length in n_images}
                for length, number, kept, stream in _deals(groups, n_images, repeats, seed):
                    parts = [len(np.unique(groups[which])) for which in (kept, stream)]
                    if len(stream) < length or least_p(*parts, draws) > alpha:
                        continue
                    samples = seen[train][kept], seen[cell.test][stream]
                    _, p = energy_test(*samples, groups[kept], groups[stream], alpha, draws, number)
                    raised[length].append(p <= alpha + 1e-12)
                drop, fell = -cell.difference, bool(cell.significant and cell.difference < 0)
                for length, alarms in raised.items():
                    share = float(np.mean(alarms)) if alarms else np.nan
                    rows.append((train, cell.test, length, share, len(alarms), drop, fell))
                bar.update()
    columns = ["train", "test", "n_images", "raised", "streams", "drop", "fell"]
    table = pd.DataFrame(rows, columns=columns)
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
