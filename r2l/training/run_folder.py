"""Who a run is, and its folder: what it needs to go on after a kill, and what it leaves behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

import r2l
from r2l.files import atomic_path, content_hash, identity, local_path, read_csv, write_csv
from r2l.options import Options

if TYPE_CHECKING:
    import pandas as pd

_NOTE = "run.json"
ANSWERED, TESTED = "predictions.csv", "tested.csv"
#: Options that say where a run is kept.
WHERE = ("experiment_name", "run_name", "tracking_uri", "folder", "resume")
# Options that may name one's own code (``module:name``), or folders with models.
_NAMING = ("pipeline", "test_pipelines", "classifier_network")
_NAMING += ("processor_uri", "classifier_uri", "state_dict_uri")
#: Folders of the package that no result depends on.
_APART = ("cli", "sweep", "widgets")


def own_module(text: str) -> Path:
    """Return where the module of ``module:name``, one's own code, would lie here."""
    return Path(text.partition(":")[0].replace(".", "/") + ".py")


def what_counts(options: Options) -> dict[str, Any]:
    """Return what the outcome of a run depends on: options by name, and hashes of own code that they name."""
    free = (*WHERE, "num_workers")
    counting = {name: value for name, value in asdict(options).items() if name not in free}
    sources = {}
    for part in " ".join(str(counting[name] or "") for name in _NAMING).replace("+", " ").split():
        folder = local_path(part)
        for file in (own_module(part), folder, *folder.glob("*"), *folder.glob("*/*")):
            sources |= {file.as_posix(): content_hash(file)} if file.is_file() else {}
    return counting | ({"sources": sources} if sources else {})


def code_version() -> str:
    """Return a hash of this package's source files, those apart that no result depends on."""
    root = Path(r2l.__file__).parent
    paths = (path.relative_to(root) for path in sorted(root.rglob("*.py")))
    sources = [(path.as_posix(), (root / path).read_text("utf-8")) for path in paths]
    return identity([source for source in sources if source[0].split("/")[0] not in _APART])


class RunFolder:
    """One run on disk. Its parts are written whole or not at all, so that a kill leaves no halves.

    Attributes:
        path: the folder; ``fold_0``, ``fold_1``, ... lie in it.
        note: what is known of the run: key, options, ids of its records, whether it is finished.
        resumed: whether an earlier process began it.
    """

    def __init__(self, path: Path, note: dict[str, Any], resumed: bool) -> None:
        self.path, self.note, self.resumed = path, note, resumed

    def keep(self, **changes: Any) -> None:
        """Write down what is known of the run."""
        self.note |= changes
        with atomic_path(self.path / _NOTE) as partial:
            partial.write_text(json.dumps(self.note, indent=1) + "\n", "utf-8")

    def fold(self, number: int) -> Path:
        """Return the folder of a fold; it is made if need be."""
        folder = self.path / f"fold_{number}"
        folder.mkdir(exist_ok=True)
        return folder

    def answers(self, number: int, name: str = ANSWERED) -> pd.DataFrame | None:
        """Return the answers of a finished fold (under the test pipelines: `TESTED`), None of any other."""
        path = self.path / f"fold_{number}" / name
        return read_csv(path) if path.exists() else None

    def finish_fold(self, number: int, predictions: pd.DataFrame) -> pd.DataFrame:
        """Keep the answers of a fold, which marks it as finished; return them as kept. Checkpoints go."""
        path = self.fold(number) / ANSWERED
        write_csv(predictions, path)
        self.tidy()
        return read_csv(path)

    def tidy(self) -> None:
        """Remove what is of no use any more, also what a process that was killed had still to remove."""
        for partial in self.path.rglob(".*.????????.part"):  # see atomic_path
            partial.unlink()
        for answers in self.path.glob(f"fold_*/{ANSWERED}"):
            for checkpoints in answers.parent.glob("checkpoint*"):
                shutil.rmtree(checkpoints)


@contextmanager
def run_folder(options: Options, data: str) -> Iterator[RunFolder]:
    """Open the folder of a run for the length of a ``with`` block: a new one, or that of an interrupted run.

    A run is gone on with if its options, its data (`Frames.fingerprint`) and this package's code are the
    same, it did not finish, and ``options.resume``.

    Raises:
        ValueError: another process is at work on the same run.
    """
    counting, code = what_counts(options), code_version()
    key = identity(counting, data, code, options.tracking_uri)
    name = f"{_safe(options.run_name or 'run')}-{key[:8]}"
    parent = Path(options.folder) / _safe(options.experiment_name)
    parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parent / f".{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        at_work = f"another process is at work on this run ({parent / name})"
        raise ValueError(f"{at_work}; wait for it, or give another --run_name") from None
    with lock:
        runs = _numbered(parent, name)
        opened = _unfinished(runs) if options.resume else None
        if opened is None:
            path = parent / f"{name}-{1 + max(runs, default=0)}"
            path.mkdir(exist_ok=True)
            opened = RunFolder(path, {}, resumed=False)
            opened.keep(key=key, options=counting, data=data, code=code, finished=False)
        opened.tidy()
        yield opened
        opened.keep(finished=True)


def _numbered(parent: Path, name: str) -> dict[int, Path]:
    """Return the runs of this name by number; what else begins so, such as a copy of one, is none."""
    ends = {path.name.removeprefix(f"{name}-"): path for path in parent.glob(f"{name}-*")}
    # Nor is one that was killed before it wrote its note: nothing that can be seen lies in it.
    none = {end for end, path in ends.items() if path.is_dir() and not any(path.glob("[!.]*"))}
    return {int(end): ends[end] for end in ends.keys() - none if re.fullmatch("[0-9]+", end)}


def _unfinished(runs: dict[int, Path]) -> RunFolder | None:
    """Return the newest run of a name, unless it finished."""
    for _, path in sorted(runs.items(), reverse=True):
        try:
            note = json.loads((path / _NOTE).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        return None if note["finished"] else RunFolder(path, note, resumed=True)
    return None


def _safe(name: str) -> str:
    """Return a name as files can have it."""
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "_"
