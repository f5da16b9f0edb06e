"""How far a setting may go before the metric falls: scans with bands, landscapes, and the report of it all.

A `ToleranceReport` is the acceptable data environment of a model: written down, checked on fresh images,
asked of a camera.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from r2l.camera import Camera
from r2l.datasets.frames import Frames
from r2l.datasets.splits import spread
from r2l.drift.forensics.search_space import Prober, selected
from r2l.drift.sensor_drift import SENSOR_SETTINGS
from r2l.drift.statistics import effective_groups, few_groups_text
from r2l.files import atomic_path, choose
from r2l.isp.added_stages import measure_defects
from r2l.isp.adjustable import Setting, camera_settings
from r2l.progress import progress_bar

_SLACK = 1e-9  # what a fall may be above the accepted drop: forgives the order of adding
_FORMAT, _VERSION = "r2l tolerances", 2
_EDGES = ("low", "high", "safe_low", "safe_high")
_COLUMNS: dict[str, type] = {"label": str, "unit": str, "value": float}
_COLUMNS |= {edge + end: kind for edge in _EDGES for end, kind in (("", float), ("_open", bool))}
_HEAD = {"model": str, "pipeline": str, "metric": str, "drop": float, "level": float}
_HEAD |= {"score": float, "images": int, "groups": int}


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
            return prober.measure(scanned.setting.name, [value])[column].iloc[0] <= drop + _SLACK

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


@dataclass(frozen=True, eq=False)
class ToleranceReport:
    """For each setting the interval in which a model's metric falls by less than ``drop``.

    Each interval is for one setting with the others unchanged; two at their edges together may do more harm
    (`landscape`).

    Attributes:
        camera, pipeline, images: whose frames were measured, how they were developed, and how many.
        metric, drop: what must not fall, and by how much it may.
        level: confidence of the safe intervals.
        score: the metric under the unchanged pipeline.
        groups: how many of equal size would tell as much, see `r2l.drift.statistics.effective_groups`.
        table: one row a setting: ``label``, ``unit``, ``value`` (unchanged), ``low`` and ``high`` by the
            estimate, ``safe_low`` and ``safe_high`` by the lower band, and for each of the four whether the
            edge is only that of the scan (``low_open`` ...).
        scans: by setting; empty when read from a file.
        defects: the most that the frames themselves show of each of a sensor's defects, see
            `r2l.isp.added_stages.measure_defects`. Their tolerances are of what comes to it.
    """

    model: str
    camera: Camera
    pipeline: str
    metric: str
    drop: float
    level: float
    score: float
    images: int
    groups: int
    table: pd.DataFrame
    scans: dict[str, Scan] = field(default_factory=dict, repr=False)
    defects: dict[str, float] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON, whole or not at all."""
        path, content = Path(path), {"format": _FORMAT, "version": _VERSION}
        content |= {name: getattr(self, name) for name in _HEAD} | {"camera": self.camera.to_dict()}
        settings = self.table.reset_index(names="name").to_dict(orient="records")
        content |= {"settings": settings, "defects": self.defects}
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> ToleranceReport:
        """Read what `save` wrote.

        Raises:
            ValueError: no such report; says what is wrong with it.
            OSError: the file can't be read.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: no JSON ({error})") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path}: no tolerance report; `r2l tolerances` writes one")
        if content.get("version") not in (1, _VERSION):
            version = content.get("version")
            raise ValueError(f"{path}: written in version {version} of the format, this r2l reads {_VERSION}")
        try:
            head = {name: kind(content[name]) for name, kind in _HEAD.items()}
            camera = Camera.from_dict(content["camera"])
            rows = [_read_row(row, camera) for row in content["settings"]]
            table = pd.DataFrame(rows).set_index("name").rename_axis("setting")
            defects = {str(k): float(v) for k, v in content.get("defects", {}).items()}
            return cls(camera=camera, table=table, defects=defects, **head)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}: damaged tolerance report ({error!r})") from None

    def check(self, camera: Camera, measured: Mapping[str, float] | None = None) -> pd.DataFrame:
        """Say for each setting whether a camera's value lies in the safe interval.

        What is compared are the numbers that a camera's frames are developed with, one at a time; not its
        optics, its noise, or its colour filters. Of its sensor, what is ``measured`` of a frame
        (`r2l.isp.added_stages.measure_defects`).

        Returns:
            One row a setting: ``value`` of the camera (nan where it tells none, as of sharpening; of a
            sensor's defects what goes beyond those of the own frames), ``safe_low``, ``safe_high``, ``unit``,
            ``verdict``: "inside", "outside", or "unknown".
        """
        told = camera_settings(camera, self.camera)
        told |= {name.replace(" ", "_"): self._beyond(name, v) for name, v in (measured or {}).items()}
        table = self.table[["unit", "safe_low", "safe_high"]].copy()
        table.insert(0, "value", [told.get(name, np.nan) for name in table.index])
        # Forgives the rounding of a DNG's tags, which matters more where the range is small.
        slack = 1e-5 / camera.span + 1e-4 * table["value"].abs()
        inside = table["value"].between(table["safe_low"] - slack, table["safe_high"] + slack)
        table["verdict"] = np.where(table["value"].isna(), "unknown", np.where(inside, "inside", "outside"))
        return table

    def _beyond(self, defect: str, measured: float) -> float:
        """Return what comes to the defects that the report's own frames show; noises add as squares."""
        own, power = self.defects.get(defect, 0.0), 2 if defect.endswith("noise") else 1
        return max(0.0, measured**power - own**power) ** (1 / power)

    def verdict(self, checked: pd.DataFrame) -> str:
        """Return in a line what `check` found: inside, or where outside; and if groups were few."""
        few = f" ({text})" if (text := few_groups_text(self.groups)) else ""
        outside = self.table["label"][checked["verdict"] == "outside"]
        if len(outside):
            return f"outside in {len(outside)} of {len(checked)} settings: {'; '.join(outside)}{few}"
        unknown = (checked["verdict"] == "unknown").sum()
        rest = f"; of {unknown} more a camera tells nothing" if unknown else ""
        return f"inside, in all {len(checked) - unknown} settings that it tells{rest}{few}"


def as_text(checked: pd.DataFrame) -> pd.DataFrame:
    """Return what `ToleranceReport.check` found in words: ``value``, ``tolerated``, ``verdict``."""
    # Six decimals are enough; beyond them an exposure of nought has some rounding left.
    values = ["–" if np.isnan(v) else f"{round(v, 6):.4g}" for v in checked["value"]]
    edges = checked[["safe_low", "safe_high", "unit"]].itertuples(index=False)
    tolerated = [f"{low:.4g} to {high:.4g} {unit}".rstrip() for low, high, unit in edges]
    return pd.DataFrame({"value": values, "tolerated": tolerated, "verdict": checked["verdict"]})


def _read_row(row: dict, camera: Camera) -> dict:
    if row["unit"] == "of full scale":  # version 1
        scaled = {name: row[name] / camera.span for name in ("value", *_EDGES)}
        row = row | scaled | {"unit": "of the range"}
    read = {"name": str(row["name"])} | {name: kind(row[name]) for name, kind in _COLUMNS.items()}
    if not all(np.isfinite(read[name]) for name in ("value", *_EDGES)):
        raise ValueError(f"a number of {read['name']} is not finite")
    return read


def tolerance_report(
    model: nn.Module,
    frames: Frames,
    pipeline: str | nn.Module | None = None,
    *,
    settings: str | Sequence[str] = "all",
    drop: float = 0.05,
    points: int = 21,
    refine: int = 4,
    metric: str = "accuracy",
    level: float = 0.95,
    name: str = "",
    progress: bool = True,
) -> ToleranceReport:
    """Scan each setting and find where the metric falls by ``drop``.

    >>> from r2l.datasets import Frames, SyntheticMicroscopy
    >>> from r2l.training import make_classifier
    >>> frames = Frames.of(SyntheticMicroscopy(10, size=32), progress=False)
    >>> model = make_classifier("SmallResNet", 9).eval()
    >>> tolerance_report(model, frames, settings=["gamma"], points=3, progress=False).table.index.to_list()
    ['gamma']

    Args:
        model, frames, pipeline, metric, level: as in `Prober`; frames it was not trained on.
        settings: names, see `settings_of`, and `SENSOR_SETTINGS` (a worse sensor: defective pixels, row and
            column noise), or "all".
        drop: the allowed fall of the metric, above 0.
        points, refine: values a scan, and how often the step at an edge is halved.
        name: of the model, for the record; its class unless given.
    """
    if not drop > 0:
        raise ValueError(f"drop is {drop}, expected more than 0")
    prober = Prober(model, frames, pipeline, metric=metric, level=level)
    names = selected("settings", settings, prober.settings, prober.settings)
    scans, rows = {}, {}
    for setting in progress_bar(iterable=names, desc="scanning", disable=not progress):
        scanned = scans[setting] = scan(prober, setting, points)
        head = {name: getattr(scanned.setting, name) for name in ("label", "unit", "value")}
        rows[setting] = head | tolerated(prober, scanned, drop, refine)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")[list(_COLUMNS)]
    some = spread(len(frames), 200) if set(names) & set(SENSOR_SETTINGS) else []
    shown = pd.DataFrame([measure_defects(frames.raw[i][None], frames.camera) for i in some])
    named = name or type(model).__name__, prober.base.camera, prober.base.name
    score, counts = float(prober.scores().mean()), (len(frames), round(effective_groups(frames.groups)))
    return ToleranceReport(*named, metric, drop, level, score, *counts, table, scans, shown.max().to_dict())


def verify_tolerances(
    report: ToleranceReport, model: nn.Module, fresh: Frames, pipeline: str | nn.Module | None = None
) -> pd.DataFrame:
    """Measure the model at every edge of a report, on images that the report has not seen.

    Model and pipeline are those that were given to `tolerance_report`. One row a setting and edge (``low``,
    ``high``, ``safe_low``, ``safe_high``): ``value``; ``fall`` of the metric there with ``fall_low`` and
    ``fall_high``; ``holds``: the estimate is at most the report's drop; ``refuted``: even the lower bound is
    more.
    """
    prober = Prober(model, fresh, pipeline, metric=report.metric, level=report.level)
    if (prober.base.camera, prober.base.name) != (report.camera, report.pipeline):
        raise ValueError(
            f"the report is about {report.camera.name}, {report.pipeline}; these frames are of "
            f"{prober.base.camera.name}, {prober.base.name}"
        )
    edges = report.table[[*_EDGES]]
    parts = {name: prober.measure(name, row).assign(edge=_EDGES) for name, row in edges.iterrows()}
    table = pd.concat(parts, names=["setting", None]).reset_index("setting").reset_index(drop=True)
    table = table[["setting", "edge", "value", "fall", "fall_low", "fall_high"]]
    table["holds"] = table["fall"] <= report.drop + _SLACK
    table["refuted"] = table["fall_low"] > report.drop + _SLACK
    return table
