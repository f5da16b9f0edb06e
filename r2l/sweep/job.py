"""One run of a sweep, what it is known by, and where it lies."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import r2l
from r2l.options import Options
from r2l.sweep.notebook import ParameterError, check_parameters, code_of

Kind = Literal["train", "notebook"]

#: What no result depends on: a change there doesn't make a finished run an old one.
_APART = ("cli", "sweep", "bench", "widgets")
#: What a finished run leaves, last of all.
RESULT = "result.json"
#: Options that say where; the sweep gives them.
GIVEN = ("experiment_name", "run_name", "tracking_uri", "folder", "resume")
#: Options that say where and how, not what.
_FREE = (*GIVEN, "num_workers")


def code_version() -> str:
    """Return a hash of this package's source files, those apart that no result depends on."""
    root = Path(r2l.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if parts[0] not in _APART:
            digest.update("/".join(parts).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        kind: "train", a run of `r2l.training.experiment.experiment`, or "notebook".
        parameters: options or notebook parameters, by name.
        place: its values on the axes of the grid; empty for a sweep of one run.
        notebook: the notebook; None for a training.
    """

    kind: Kind
    parameters: dict[str, Any]
    place: dict[str, Any] = field(default_factory=dict)
    notebook: str | None = None

    @cached_property
    def what(self) -> dict[str, Any]:
        """All that the outcome depends on except this package's code."""
        if self.notebook is not None:
            return {"notebook": code_of(Path(self.notebook)), "parameters": self.parameters}
        options = asdict(self.options())
        return {name: value for name, value in options.items() if name not in _FREE}

    @cached_property
    def hash(self) -> str:
        """Hash of all that the outcome depends on except this package's code."""
        text = json.dumps([self.kind, self.what], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def folder(self, runs: Path, code: str, any_code: bool = False) -> Path:
        """Return where the run lies: its name, its hash, and the version of the code.

        Args:
            runs: the folder of all runs.
            code: see `code_version`.
            any_code: take a finished run of another version, if there is one.
        """
        place = runs / f"{self.name}-{self.hash}-{code[:6]}"
        if any_code and not (place / RESULT).exists():
            others = sorted(p.parent for p in runs.glob(f"*-{self.hash}-*/{RESULT}"))
            return others[-1] if others else place
        return place

    @property
    def name(self) -> str:
        """Its place on the grid as a name that a folder can have."""
        if not self.place:
            return Path(self.notebook).stem if self.notebook else "train"
        parts = (f"{axis}={_plain(value)}" for axis, value in self.place.items())
        return re.sub(r"[^\w.=+-]+", "_", " ".join(parts))[:100]

    def options(self, **given: Any) -> Options:
        """Return the options of a training.

        Raises:
            ValueError: values that do not exist or contradict each other.
        """
        return Options(**{**self.parameters, **given})

    def check(self) -> None:
        """Find what can be found wrong before anything runs.

        Raises:
            ParameterError: an unknown name, or a value that is not possible.
        """
        if self.notebook is not None:
            check_parameters(Path(self.notebook), self.parameters)
            return
        known = {option.name for option in fields(Options)} - set(GIVEN)
        for name in self.parameters:
            if name not in known:
                raise ParameterError(
                    f"r2l train has no option {name} that a sweep can give; there are "
                    f"{', '.join(sorted(known))}, and pipeline"
                )
        try:
            self.options()
        except (ValueError, TypeError) as error:
            raise ParameterError(f"run {self.name}: {error}") from error


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
