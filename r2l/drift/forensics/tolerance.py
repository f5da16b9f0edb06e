"""How far a setting may go before the metric falls: scans with bands, intervals, landscapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

from r2l.datasets.frames import Frames
from r2l.drift.forensics.adjusted import AdjustedISP
from r2l.drift.forensics.objective import score_images, task_model
from r2l.drift.forensics.settings import Base, Setting, settings_of
from r2l.drift.statistics import Bootstrap, bootstrap_means
from r2l.progress import progress_bar


class Prober:
    """A model, frames and a pipeline: asked for the scores of all frames under changed settings.

    Args:
        model: as in `bounded_attack`; stays as it is.
        frames: of one camera.
        pipeline: what `AdjustedISP` takes.
        metric: one of `METRICS`.
        bootstrap: of the bands.
    """

    def __init__(
        self,
        model: nn.Module,
        frames: Frames,
        pipeline: str | nn.Module = "bi,s,ga",
        *,
        metric: str = "accuracy",
        bootstrap: Bootstrap = Bootstrap(),
    ) -> None:
        self.task, self.frames, self.metric = task_model(model, frames.raw.device), frames, metric
        self.base = Base.of(pipeline, frames.camera)
        self.settings = settings_of(self.base)
        self.bootstrap = bootstrap
        self._known: dict[tuple[tuple[str, float], ...], np.ndarray] = {}

    def scores(self, **values: float) -> np.ndarray:
        """Return the score (N,) of each frame under these settings; asked twice, remembered."""
        moved = {
            n: v for n, v in values.items() if n not in self.settings or v != self.settings[n].value
        }
        key = tuple(sorted(moved.items()))
        if key not in self._known:
            isp = AdjustedISP(self.base, self.base.camera, **moved)
            self._known[key] = score_images(self.task, self.frames, isp, self.metric)
        return self._known[key]

    def measure(self, name: str, values: Sequence[float]) -> pd.DataFrame:
        """Return score and fall of the metric, with bounds, one row a value of one setting."""
        columns = np.stack([self.scores(**{name: float(value)}) for value in values], 1)
        falls = self.scores()[:, None] - columns
        table = pd.DataFrame({"value": np.asarray(values, dtype=float)})
        score = bootstrap_means(columns, self.frames.groups, self.bootstrap)
        fall = bootstrap_means(falls, self.frames.groups, self.bootstrap)
        table[["score", "low", "high"]] = np.stack(score, 1)
        table[["fall", "fall_low", "fall_high"]] = np.stack(fall, 1)
        return table


@dataclass(frozen=True, eq=False)
class Scan:
    """The metric along one setting.

    Attributes:
        setting: which.
        metric: what was measured.
        table: one row a value, rising: ``value``; ``score`` with ``low``, ``high``; ``fall`` from the
            unchanged pipeline, image by image, with ``fall_low``, ``fall_high``.
    """

    setting: Setting
    metric: str
    table: pd.DataFrame


def scan(
    prober: Prober, name: str, points: int = 21, values: Sequence[float] | None = None
) -> Scan:
    """Measure the metric along one setting, the others unchanged.

    Args:
        prober: model, frames and pipeline.
        name: of the setting.
        points: how many values between the setting's ``low`` and ``high``.
        values: these instead.

    Raises:
        ValueError: an unknown setting (lists those that exist), or fewer than 3 points.
    """
    if name not in prober.settings:
        raise ValueError(f"no setting {name!r}; choose from {', '.join(prober.settings)}")
    setting = prober.settings[name]
    chosen = setting.grid(points) if values is None else np.sort(np.asarray(values, dtype=float))
    return Scan(setting, prober.metric, prober.measure(name, chosen))


def tolerated(prober: Prober, found: Scan, drop: float, refine: int = 4) -> dict[str, float | bool]:
    """Return the interval around the present value in which the metric falls by less than ``drop``.

    Outwards from the present value, up to the first value that fails; between that and the last that
    passes the edge is narrowed by halving. What is returned has been measured, and passed.

    Args:
        prober: what ``found`` was scanned with.
        found: a scan.
        drop: the allowed fall, in units of the metric.
        refine: how often the step is halved.

    Returns:
        ``low`` and ``high`` by the estimated fall; ``safe_low`` and ``safe_high`` by the worst case, the
        upper bound of the fall (lower band of the metric). ``low_open`` and so on say whether the edge is
        that of the scan, so that the true one may lie further out.
    """
    edges: dict[str, float | bool] = {}
    name = found.setting.name
    for prefix, column in (("", "fall"), ("safe_", "fall_high")):
        for side in ("low", "high"):
            passes = found.table[column] <= drop + 1e-9
            values = found.table["value"].to_numpy()
            inside, outside = _crossing(values, passes.to_numpy(), found.setting.value, side)

            def holds(value: float, column: str = column) -> bool:
                return bool(prober.measure(name, [value])[column].iloc[0] <= drop + 1e-9)

            edge = inside if outside is None else _halve(holds, inside, outside, refine)
            edges |= {f"{prefix}{side}": edge, f"{prefix}{side}_open": outside is None}
    return edges


def _crossing(
    values: np.ndarray, passes: np.ndarray, present: float, side: str
) -> tuple[float, float | None]:
    """Return the last value that passes on one side of the present one, and the first that fails."""
    order = values[values > present] if side == "high" else values[values < present][::-1]
    verdicts = passes[values > present] if side == "high" else passes[values < present][::-1]
    inside = present
    for value, passed in zip(order, verdicts, strict=True):
        if not passed:
            return float(inside), float(value)
        inside = value
    return float(inside), None


def _halve(holds: Callable[[float], bool], inside: float, outside: float, times: int) -> float:
    for _ in range(times):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


@dataclass(frozen=True, eq=False)
class Landscape:
    """The metric over two settings.

    Attributes:
        first, second: the settings; rows and columns.
        metric: what was measured.
        scores: means, (values of first, values of second).
    """

    first: Setting
    second: Setting
    metric: str
    scores: pd.DataFrame


def landscape(
    prober: Prober,
    first: str,
    second: str,
    *,
    points: int = 9,
    progress: bool = False,
) -> Landscape:
    """Measure the metric over a grid of two settings, the others unchanged.

    Raises:
        ValueError: an unknown setting, twice the same, or fewer than 3 points.
    """
    if missing := [n for n in (first, second) if n not in prober.settings]:
        raise ValueError(f"no settings {missing}; choose from {', '.join(prober.settings)}")
    if first == second:
        raise ValueError(f"a landscape needs two settings, not {first!r} twice")
    settings = prober.settings[first], prober.settings[second]
    rows, columns = (setting.grid(points) for setting in settings)
    scores = pd.DataFrame(index=pd.Index(rows, name=first), columns=pd.Index(columns, name=second))
    pairs = [(row, column) for row in rows for column in columns]
    for row, column in progress_bar(iterable=pairs, desc="landscape", disable=not progress):
        scores.loc[row, column] = prober.scores(**{first: row, second: column}).mean()
    return Landscape(*settings, prober.metric, scores.astype(float))
