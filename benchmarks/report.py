"""What a run found, as text, Markdown and JSON, and the table in a README."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.calls import BYTES_A_PIXEL, COPY
from r2l.files import atomic_path

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
_LIBRARIES = ("scipy", "scikit-image", "colour-demosaicing", "kornia", "opencv-python-headless", "rawpy")
_SHARE = "share of copy"
_LEGEND = (
    "MP/s: megapixels of raw data a second, median over the rounds, with quartiles. Ratios: times as "
    "fast, the median of the ratios within each round.",
    "Recipe: the same static pipelines composed of colour-demosaicing, scikit-image and scipy, as "
    "published, in float64.",
    "LibRaw: whole development to 8 bit; the ratio is against the file opened before, LINEAR for bi and "
    "ma, AHD for me.",
    "Published parametrized: its stages one after the other in torch.",
)


@dataclass
class Report:
    """One run of the benchmark.

    Attributes:
        environment: date, machine and versions.
        speeds: as `benchmarks.timing.summarise` returns it.
        units: of speed, by group.
        memory: what `benchmarks.memory.peaks` yielded, or None.
        memory_title: heads it.
        notes: who was left out, and why.
        seconds: of one call, round by round: (group, contender) to times.
    """

    environment: dict[str, str]
    speeds: pd.DataFrame
    units: dict[str, str]
    memory: pd.DataFrame | None = None
    memory_title: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return each group's table as people read it, everything a string."""
        tables = {}
        if len(self.speeds):
            for group, part in self.speeds.groupby("group", sort=False):
                tables[str(group)] = _readable(part, self.units[str(group)])
        if self.memory is not None and len(self.memory):
            memory = self.memory.copy()
            memory["MiB"] = memory["MiB"].map(lambda v: "" if pd.isna(v) else f"{v:.0f}")
            last = memory.columns[-1]
            memory[last] = memory[last].map(lambda v: "" if pd.isna(v) else f"{v:.2f}")
            tables[self.memory_title] = memory
        return tables

    def text(self) -> str:
        """Return the report for a terminal."""
        parts = [_sentence(self.environment)]
        for title, table in self.tables().items():
            left = table.columns[0]
            width = table[left].str.len().max()
            table = table.assign(**{left: table[left].str.ljust(width)})
            parts.append(f"{title}\n{table.to_string(index=False, justify='right')}")
        return "\n\n".join(parts) + "\n\n" + "\n".join([*self.legend(), *self.notes]) + "\n"

    def markdown(self, folded: bool = False) -> str:
        """Return the report as Markdown; ``folded`` hides all tables but the first two behind titles."""
        parts = [_sentence(self.environment)]
        for number, (title, table) in enumerate(self.tables().items()):
            lines = [_row(table.columns), _row(["---", *["---:"] * (len(table.columns) - 1)])]
            lines += [_row(row) for row in table.itertuples(index=False)]
            body = "\n".join(lines)
            if folded and number > 1:
                parts.append(f"<details><summary>{title}</summary>\n\n{body}\n\n</details>")
            else:
                parts.append(f"**{title}**\n\n{body}")
        return "\n\n".join([*parts, " ".join([*self.legend(), *self.notes])]) + "\n"

    def legend(self) -> list[str]:
        """Return what the columns mean, and how fast memory is."""
        lines = list(_LEGEND)
        rows = self.speeds.to_dict(orient="records")
        copies = [r for r in rows if r["contender"] == COPY and self.units[r["group"]] == "MP/s"]
        if copies:
            speeds = [f"{r['speed'] * BYTES_A_PIXEL / 1000:.0f}" for r in copies]
            lines.append(f"Memory copy, read and written: {', '.join(speeds)} GB/s, by group.")
        lines.append(
            f"Share of copy: against copying the {BYTES_A_PIXEL} bytes a pixel that a development has to "
            "move, float32 raw in and three float32 out."
        )
        return lines

    def to_json(self) -> str:
        """Return everything, the single times too."""
        memory = [] if self.memory is None else _records(self.memory)
        content = {
            "environment": self.environment,
            "speeds": [
                row
                | {"unit": self.units[row["group"]], "seconds": self.seconds[row["group"], row["contender"]]}
                for row in _records(self.speeds)
            ],
            "memory": memory,
            "notes": self.notes,
        }
        return json.dumps(content, indent=1) + "\n"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not pd.isna(v)} for row in frame.to_dict(orient="records")]


def _readable(part: pd.DataFrame, unit: str) -> pd.DataFrame:
    ratios = [c for c in part.columns[5:] if part[c].notna().any()]
    table = pd.DataFrame({"": part["contender"], unit: part["speed"].map(_figure)})
    table["quartiles"] = [
        f"{_figure(a)} to {_figure(b)}" for a, b in zip(part["low"], part["high"], strict=True)
    ]
    for ratio in (c for c in ratios if c != _SHARE):
        table[ratio] = part[ratio].map(lambda v: "" if pd.isna(v) else _figure(v))
    if _SHARE in ratios:
        table[_SHARE] = part[_SHARE].map(lambda v: "" if pd.isna(v) else f"{100 * v:.1f} %")
    return table


def _figure(value: float) -> str:
    """Three digits, or two after the point where there are fewer before it."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _row(cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def environment() -> dict[str, str]:
    """Return date, machine and versions."""
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        found["load before"] = f"{os.getloadavg()[0]:.1f}"
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    for package in ("r2l", "torch", "numpy", *_LIBRARIES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _sentence(environment: dict[str, str]) -> str:
    known = dict(environment)
    head = f"{known.pop('date')}, {known.pop('processor')}, {known.pop('cores')} cores"
    return f"{head}; " + ", ".join(f"{name} {value}" for name, value in known.items()) + "."


def check_markers(path: Path) -> None:
    """Raise unless a file has the markers between which a table goes.

    Raises:
        ValueError: they are not there, not once each, or in the wrong order.
        OSError: the file can't be read.
    """
    _split_at_markers(path)


def _split_at_markers(path: Path) -> tuple[str, str]:
    content = path.read_bytes().decode("utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise ValueError(f"{path} needs one line {BEGIN} and, below it, one line {END}")
    before, rest = content.split(BEGIN)
    if END not in rest:
        raise ValueError(f"{path} has {END} above {BEGIN}")
    return before, rest.split(END)[1]


def write_between_markers(path: Path, text: str) -> None:
    """Replace what a file has between its markers, whole or not at all; the rest stays to the byte.

    Raises:
        ValueError: the markers are not there, not once each, or in the wrong order.
        OSError: the file can't be read or written.
    """
    before, after = _split_at_markers(path)
    content = f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode("utf-8"))
        partial.chmod(path.stat().st_mode & 0o777)
