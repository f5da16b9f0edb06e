"""How far a setting may go before the metric falls: scans with bands, intervals, landscapes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from torch import Tensor, nn

from r2l.camera import Camera
from r2l.datasets.frames import Frames
from r2l.drift.forensics.search_space import Develop, Evaluator, own_processor
from r2l.drift.statistics import crossed_means, crossed_ratios
from r2l.files import choose
from r2l.isp.adjustable import AdjustableISP, Setting, settings_of
from r2l.progress import progress_bar
from r2l.sensor import add_defects, add_line_noise

#: What a fall may be above the accepted drop: forgives the order of adding.
SLACK = 1e-9
#: What a sensor may be worse by; named as `r2l.isp.preparation.measure_defects` calls it, with "_" for " ".
_UNITS = {"defective_pixels": "of the sites", "row_noise": "of the range", "column_noise": "of the range"}
SENSOR_SETTINGS = {
    name: Setting(name, name.replace("_", " "), unit, 0.0, 0.0, 0.05, 0.01) for name, unit in _UNITS.items()
}


def _worsened(raw: Tensor, camera: Camera, seed: int = 0, **values: float) -> Tensor:
    """Return raw frames (B, 1, H, W) of a sensor that is worse by `SENSOR_SETTINGS`, alike for all frames."""
    # Defective pixels are hot. More of them are those of fewer and others besides.
    for name, value in values.items():
        rng = np.random.default_rng((seed, list(SENSOR_SETTINGS).index(name)))
        if name == "defective_pixels":
            raw = add_defects(raw, value, camera.white_level, rng)
        else:
            axis = -2 if name == "row_noise" else -1
            raw = add_line_noise(raw, value * camera.span, axis, rng).clamp(0, camera.white_level)
    return raw


class Prober:
    """A model, frames and a pipeline: asked for the scores of all frames under changed settings.

    Args:
        model, frames, metric: as in `Evaluator`; the frames of one camera.
        pipeline: a code such as "ma,s,me", a corrected `StaticISP`, or a `ParametrizedISP`; by default the
            model's own processor, or "bi,s,ga" if it has none.
        level: of the bands and safe intervals, over groups.

    Its ``settings`` are those of the pipeline, see `settings_of`, and `SENSOR_SETTINGS`.
    """

    def __init__(
        self,
        model: nn.Module,
        frames: Frames,
        pipeline: str | nn.Module | None = None,
        *,
        metric: str = "accuracy",
        level: float = 0.95,
    ) -> None:
        self.evaluator, self.level = Evaluator(model, frames, metric), level
        self.base = AdjustableISP(own_processor(model, pipeline), frames.camera)
        self.settings = settings_of(self.base) | SENSOR_SETTINGS
        self._remembered: dict[tuple[tuple[str, float], ...], np.ndarray] = {}

    def pipeline(self, **values: float) -> Develop:
        """Return the pipeline under these settings, the others unchanged."""
        sensor = {name: values.pop(name) for name in SENSOR_SETTINGS if name in values}
        isp, camera = AdjustableISP(self.base, **values), self.evaluator.frames.camera
        return (lambda raw: isp(_worsened(raw, camera, **sensor))) if sensor else isp

    def scores(self, **values: float) -> np.ndarray:
        """Return the score (N,) of each frame under these settings; asked twice, remembered."""
        moved = {n: v for n, v in values.items() if n not in self.settings or v != self.settings[n].value}
        key = tuple(sorted(moved.items()))
        if key not in self._remembered:
            self._remembered[key] = self.evaluator.scores(self.pipeline(**moved))
        return self._remembered[key]

    def measure(self, name: str, values: Sequence[float]) -> pd.DataFrame:
        """Return score and fall of the metric, with bounds, one row a value of one setting."""
        columns = np.stack([self.scores(**{name: float(value)}) for value in values], 1)
        groups = self.evaluator.frames.groups
        score = crossed_ratios(columns, np.ones_like(columns), groups, self.level).shares()
        fall = crossed_means(self.scores()[:, None] - columns, groups, self.level)
        table = pd.DataFrame({"value": np.asarray(values, dtype=float)})
        table[["score", "low", "high"]] = np.stack(score[:3], 1)
        table[["fall", "fall_low", "fall_high"]] = np.stack(fall[:3], 1)
        return table


@dataclass(frozen=True, eq=False)
class Scan:
    """The metric along one setting.

    One row of ``table`` a value, rising: ``value``; ``score`` with ``low``, ``high``; ``fall`` from the
    unchanged pipeline, image by image, with ``fall_low``, ``fall_high``.
    """

    setting: Setting
    metric: str
    table: pd.DataFrame


def scan(prober: Prober, name: str, points: int = 21) -> Scan:
    """Measure the metric at so many values from a setting's ``low`` to its ``high``, the others unchanged."""
    setting = choose("setting", name, prober.settings)
    return Scan(setting, prober.evaluator.metric, prober.measure(name, setting.grid(points)))


def tolerated(prober: Prober, scanned: Scan, drop: float, refine: int = 4) -> dict[str, float | bool]:
    """Return the interval around the present value in which the metric falls by less than ``drop``.

    Outwards from the present value, by half the step of the scan, up to the first value that fails: a metric
    that falls and rises again leaves no hole in the interval that is as wide as that. Between the last that
    passes and the first that fails the edge is narrowed by halving, ``refine`` times. What is returned has
    been measured, and passed: ``low`` and ``high`` by the estimated fall, ``safe_low`` and ``safe_high`` by
    the upper bound of the fall. ``low_open`` and so on say whether the edge is that of the scan, so that the
    true one may lie further out.
    """
    present, values = scanned.setting.value, scanned.table["value"]
    outwards = {"low": values[values < present][::-1], "high": values[values > present]}
    edges: dict[str, float | bool] = {}
    for prefix, column in (("", "fall"), ("safe_", "fall_high")):

        def passes(value: float, column: str = column) -> bool:
            return prober.measure(scanned.setting.name, [value])[column].iloc[0] <= drop + SLACK

        for side, grid in outwards.items():
            name = prefix + side
            edges[name], edges[f"{name}_open"] = _walk(passes, present, grid, refine)
    return edges


def _walk(
    passes: Callable[[float], bool], inside: float, grid: Iterable[float], refine: int
) -> tuple[float, bool]:
    """Return the last value that passes, and whether all of the grid and the middles of its steps do."""
    for value in grid:
        for outside in ((inside + value) / 2, value):
            if not passes(outside):
                for _ in range(refine):
                    middle = (inside + outside) / 2
                    inside, outside = (middle, outside) if passes(middle) else (inside, middle)
                return float(inside), False
            inside = outside
    return float(inside), True


@dataclass(frozen=True, eq=False)
class Landscape:
    """The metric over two settings: mean ``scores``, (values of first, values of second)."""

    first: Setting
    second: Setting
    metric: str
    scores: pd.DataFrame


def landscape(
    prober: Prober, first: str, second: str, *, points: int = 9, progress: bool = False
) -> Landscape:
    """Measure the metric over a grid of two settings, the others unchanged."""
    settings = [choose("setting", name, prober.settings) for name in (first, second)]
    if first == second:
        raise ValueError(f"a landscape needs two settings, not {first!r} twice")
    rows, columns = (setting.grid(points) for setting in settings)
    pairs = progress_bar(iterable=list(product(rows, columns)), desc="landscape", disable=not progress)
    means = [prober.scores(**{first: row, second: column}).mean() for row, column in pairs]
    scores = pd.DataFrame(np.reshape(means, (points, points)), rows, columns)
    scores = scores.rename_axis(first).rename_axis(second, axis=1)
    return Landscape(*settings, prober.evaluator.metric, scores)
