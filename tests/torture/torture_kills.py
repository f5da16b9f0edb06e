"""Kills at random moments while data are fetched, unpacked and tiled, and while models train.

`make torture` runs it; it needs about eight minutes on two cores. A piece of work is a program of its own,
which is killed (SIGKILL, with its children) at a moment drawn from its work, not from the seconds of its
imports; and again, in the same folder, until it comes to its end; and anew in the next folder, until
enough kills have landed. After each of them, what was finished must still be there, untouched, and what
has its final name must be whole; and at the end all must be as an undisturbed run leaves it.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pandas as pd
import pytest
import sqlalchemy
from typer.testing import CliRunner

from r2l.cli import app
from r2l.datasets.layout import MANIFEST
from r2l.training.checkpoints import LAST, _read_last
from r2l.training.run_folder import _NOTE
from r2l.training.tracking import Records, open_client
from tests.conftest import run_apart
from tests.fixtures_data import LABELS, write_drone_photos, write_microscopy, zip_folders
from tests.local_zenodo import local_zenodo

pytestmark = pytest.mark.timeout(1800)

KILLS = int(os.environ.get("R2L_TORTURE_KILLS", "25"))  # of downloads, of tiling, of training
SEED = int(os.environ.get("R2L_TORTURE_SEED", "0"))
LANES = 2  # works of a kind side by side, one a core
PATIENCE = 300  # seconds until a program counts as stuck
DONE = float("inf")
TALLIES = []


class Work:
    """A program that does its work in a folder, and what must hold of that folder at every moment."""

    what = ""
    # Files of the user's that lie there before: path to content.
    foreign: Mapping[str, bytes] = {"notes.txt": b"mine", ".mine.part": b"mine too"}
    # Names of files that may differ from those of an undisturbed run: `outcome` looks into them; and of
    # what other programs may never take for a result, so that it is not looked at.
    changing, absent = r"\.lock$", r"(^|/)\.[^/]*part$"

    def __init__(self, place, source=None):
        self.place, self.source = place, source  # a server, or a folder of data
        self.place.mkdir(parents=True)

    def prepare(self, folder):
        """Lay out what is there before the first start."""
        for name, content in self.foreign.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def command(self, folder):
        raise NotImplementedError

    def variables(self, folder):
        return {}

    def sign(self, folder, printed):
        """Return a number that grows when a program, by now past its imports, begins to work."""
        return printed.stat().st_size if printed.exists() else 0

    def stays(self, folder, name):
        """Tell whether a file that has its final name is finished for good."""
        return True

    def progress(self, folder):
        """Return numbers that never get smaller, by name."""
        return {}

    def faults(self, folder):
        """Return what is wrong in a folder besides files that differ from an undisturbed run's."""
        return []

    def outcome(self, folder):
        """Return what has to be equal at the end besides the files."""
        return None

    def files(self, folder):
        """Return the digest of each file that has its final name."""
        skipped = re.compile(f"{self.changing}|{self.absent}")
        found = {name: folder / name for name in names_in(folder) - set(self.foreign)}
        return {n: digest(p) for n, p in found.items() if p.is_file() and not skipped.search(n)}

    def done(self, folder, whole):
        """Tell whether there is nothing left to do, though the program may have been about to end."""
        return set(whole.files) <= set(self.files(folder)) and self.outcome(folder) == whole.outcome

    def left_behind(self, folder, whole):
        """Return the files that an undisturbed run doesn't leave."""
        left = names_in(folder) - set(self.foreign) - whole.names
        return sorted(name for name in left if not re.search(self.changing, name))


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Fetch(Work):
    """`r2l data fetch` from a server on this machine."""

    changing = rf"\.lock$|^{MANIFEST}$"
    absent = r"part$"
    foreign: Mapping[str, bytes] = {"notes.txt": b"mine", "microscopy/notes.part": b"mine too"}
    foreign |= {"downloads/holiday.zip": b"mine", "downloads/holiday.zip.part": b"half of mine"}

    def command(self, folder):
        return ["-m", "r2l", "data", "fetch", "microscopy", "--root", str(folder)]

    def variables(self, folder):
        return {"R2L_ZENODO_API": self.source.api}

    def sign(self, folder, printed):
        return len(self.source.log)  # the record is asked for first

    def progress(self, folder):
        return {name: self._came(folder, name) for name in self.source.files}

    def _came(self, folder, name):
        part = folder / "downloads" / f"{name}.part"
        if (folder / "downloads" / name).exists():
            return DONE
        return part.stat().st_size if part.exists() else 0

    def faults(self, folder):
        wrong = []
        for name, content in self.source.files.items():
            part = folder / "downloads" / f"{name}.part"
            if part.exists() and not content.startswith(part.read_bytes()):
                wrong.append(f"{part.name} is not the beginning of the file")
        try:
            self.outcome(folder)
        except ValueError as error:
            wrong.append(f"{MANIFEST}: {error}")
        return wrong

    def outcome(self, folder):
        path = folder / MANIFEST
        return json.loads(path.read_text("utf-8")) if path.exists() else None


class Download(Fetch):
    """The server is slow: most of the time goes by while bytes come, of which none may come again."""

    what = "download"

    def prepare(self, folder):
        super().prepare(folder)
        self.came = {name: (0, len(self._asked(name))) for name in self.source.files}

    def _asked(self, name):
        return [int(re.sub(r"\D", "", asked or "0")) for asked in self.source.requests_of(name)]

    def faults(self, folder):
        wrong = super().faults(folder)
        for name, (came, count) in self.came.items():
            asked = self._asked(name)
            if asked[count:] and asked[count] != came:
                wrong.append(f"{name}: asked for from {asked[count]}, with {came} bytes there")
            self.came[name] = (self._came(folder, name), len(asked))
        return wrong


class Unpacking(Fetch):
    """The archives are there already, and are unpacked."""

    what = "unpacking"

    def prepare(self, folder):
        super().prepare(folder)
        for name, content in self.source.files.items():
            (folder / "downloads" / name).write_bytes(content)


class Tiling(Work):
    """Photos are cut and frames decoded into the cache."""

    what = "tiling"
    foreign = Work.foreign | {"drone_tiles.npy": b"mine", ".drone_tiles.npy.part": b"half of mine"}
    script = """
import sys
from r2l.datasets import RawDrone, RawMicroscopy
print("begin", flush=True)
for intensity in (1.0, 0.5, 0.25, 0.1):
    for task in ("segmentation", "classification"):
        RawDrone(sys.argv[1], "all", intensity, task=task)[0]
    RawMicroscopy(sys.argv[1], "all", intensity)[0]
"""

    def command(self, folder):
        return ["-c", self.script, str(self.source)]

    def variables(self, folder):
        return {"R2L_CACHE": str(folder)}


class Training(Work):
    """`r2l train` on two folds of a small twin."""

    what = "training"
    foreign = Work.foreign | {"runs/r2l/R-notes.txt": b"mine too", "runs/r2l/.mine.part": b"and this"}
    changing = rf"\.lock$|(^|/)\.id$|(^|/){_NOTE}$|^mlflow\.db|^mlruns|^tmp"
    absent = r"part$|/checkpoint/"
    options = (
        "--dataset SyntheticMicroscopy --n_images 20 --image_size 32 --run_name R --n_splits 2 "
        "--classifier_network SmallResNet --accelerator cpu --epochs 8 --batch_size 4 --lr 1e-3 "
        "--augmentation weak --save_locally --track_processing"
    )

    def prepare(self, folder):
        super().prepare(folder)
        (folder / "tmp").mkdir()

    def command(self, folder):
        return ["-m", "r2l", "train", *self.options.split()]

    def variables(self, folder):
        return {"TMPDIR": str(folder / "tmp")}

    def stays(self, folder, name):
        fold = re.match(r".*/fold_\d+/", name)
        if fold:
            return (folder / fold[0] / "predictions.csv").exists()
        return self.done(folder, None)

    def done(self, folder, whole):
        # Repeated, the command would begin a new run.
        return any(_json(note)["finished"] for note in self._notes(folder))

    def progress(self, folder):
        """Whole epochs of each fold."""
        epochs = {}
        for note in self._notes(folder):
            for fold in note.parent.glob("fold_*"):
                epochs[fold.name] = DONE
                if not (fold / "predictions.csv").exists():
                    found = _read_last(fold / "checkpoint")
                    epochs[fold.name] = -1 if found is None else found[1]["epoch"]
        return epochs

    def faults(self, folder):
        wrong = []
        try:
            list(map(_json, self._notes(folder)))
            for last in folder.glob(f"runs/*/*/fold_*/checkpoint/{LAST}"):
                if _read_last(last.parent)[0] != last:
                    wrong.append(f"{last.parent.parent.name}: {LAST} is damaged")
        except ValueError as error:
            wrong.append(str(error))
        store = folder / "mlflow.db"
        if store.exists():
            with closing(sqlite3.connect(store)) as database:
                (answer,) = database.execute("pragma integrity_check").fetchone()
            wrong += [] if answer == "ok" else [f"{store.name}: {answer}"]
        return wrong

    def outcome(self, folder):
        """The records: of each, status, settings, curves, and digests of what belongs to it."""
        (note,) = self._notes(folder)
        known = _json(note)
        records = Records(folder)
        ids = {"run": known["run_id"], **known["folds"]}
        every = sorted((r.info.run_name, r.info.status) for r in records.all())
        return {"finished": known["finished"], "every record": every} | {
            name: {
                "status": records.call("get_run", run_id).info.status,
                "settings": records.call("get_run", run_id).data.params,
                "curves": records.history(run_id).sort_index(axis=1).to_csv(),
                "files": {file: digest(records.local(run_id, file)) for file in records.files(run_id)},
            }
            for name, run_id in ids.items()
        }

    def _notes(self, folder):
        return sorted(folder.glob(f"runs/*/*/{_NOTE}"))


def _json(path):
    return json.loads(path.read_text("utf-8"))


@dataclass
class Tally:
    """What happened to a piece of work."""

    what: str
    kills: int = 0
    in_work: int = 0
    starts: int = 0
    ends: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    corrupted: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def add(self, other):
        for name, value in vars(other).items():
            setattr(self, name, value if name == "what" else getattr(self, name) + value)


@dataclass
class Whole:
    """What an undisturbed run leaves, and how long its work took."""

    seconds: float
    files: dict[str, str]
    names: set[str]
    outcome: object


def seconds_of(folder, began):
    """Return how long a program worked: until it wrote the last file, not until it was gone."""
    files = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file()]
    return max(0.1, max(files) - began)


def run(work, folder, delay=None):
    """Run the program; with a delay, kill it that long after its work began.

    Returns its exit status, when its work began (None: it didn't) and what it said of errors.
    """
    printed, errors = (folder.with_name(f"{folder.name}.{kind}") for kind in ("out", "err"))
    printed.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("R2L_", "MLFLOW_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", **work.variables(folder)}
    before = work.sign(folder, printed)
    line, where = [sys.executable, *work.command(folder)], {"cwd": folder, "env": environment}
    with printed.open("wb") as out, errors.open("wb") as err:
        program = subprocess.Popen(line, **where, stdout=out, stderr=err, start_new_session=True)
    began, latest = None, time.monotonic() + PATIENCE
    try:
        while began is None and program.poll() is None:
            if work.sign(folder, printed) > before:
                began = time.time()
            assert time.monotonic() < latest, f"{work.what} doesn't begin"
            time.sleep(0.002)
        program.wait(PATIENCE if delay is None else delay)
    except subprocess.TimeoutExpired:
        assert delay is not None, f"{work.what} doesn't end: {errors.read_text()}"
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    return program.returncode, began, errors.read_text()


def undisturbed(work):
    folder = work.place / "undisturbed"
    folder.mkdir()
    work.prepare(folder)
    code, began, errors = run(work, folder)
    assert code == 0, errors
    return Whole(seconds_of(folder, began), work.files(folder), names_in(folder), work.outcome(folder))


class Watch:
    """Remembers what was finished in a folder, and finds what was lost or is not whole."""

    def __init__(self, work, folder, whole):
        self.work, self.folder, self.whole = work, folder, whole
        self.when, self.far = {}, {}

    def look(self, tally):
        """Add what is wrong to the tally; return whether nothing is."""
        files = self.work.files(self.folder)
        known = sorted(set(files) & set(self.whole.files))
        corrupted = [name for name in known if files[name] != self.whole.files[name]]
        corrupted += self.work.faults(self.folder)
        lost = [name for name in self.when if name not in files]
        if not corrupted:
            lost += self._undone(known)
        for name, content in self.work.foreign.items():
            path = self.folder / name
            if not path.exists() or path.read_bytes() != content:
                lost.append(f"{name}, which is the user's")
        tally.lost += lost
        tally.corrupted += corrupted
        return not lost and not corrupted

    def _undone(self, known):
        """Return what was made again, or fell back."""
        stays = [name for name in known if self.work.stays(self.folder, name)]
        when = {name: (self.folder / name).stat().st_mtime_ns for name in stays}
        undone = [f"{name}, made again" for name, t in when.items() if self.when.get(name, t) != t]
        far = self.work.progress(self.folder)
        for name, came in self.far.items():
            if far.get(name, came) < came:
                undone.append(f"{name}: {came} came to {far[name]}")
        self.when |= when
        self.far |= far
        return undone

    def conclude(self, tally):
        """Compare what is there after the end with what an undisturbed run leaves."""
        missing = sorted(set(self.whole.files) - set(self.work.files(self.folder)))
        tally.lost += missing
        if not missing and self.work.outcome(self.folder) != self.whole.outcome:
            tally.corrupted.append(f"{self.work.outcome(self.folder)}\nand undisturbed\n{self.whole.outcome}")
        tally.left += self.work.left_behind(self.folder, self.whole)


def kill_until_done(work, whole, chance, tally, kills):
    """Kill the program again and again in one folder, until it comes to its end."""
    folder = work.place / str(tally.starts)
    folder.mkdir()
    work.prepare(folder)
    watch, rest = Watch(work, folder, whole), whole.seconds
    for start in itertools.count():
        tally.starts += 1
        assert tally.starts < 20 * kills, f"{work.what}: the kills don't land"
        # What is left of the work as far as one can tell, and some more, so that ends come into reach.
        rest = max(rest, whole.seconds / 3)
        delay = chance.uniform(0, rest) if tally.in_work < kills else None
        code, began, errors = run(work, folder, delay)
        fine = watch.look(tally)
        done = code == 0 or (fine and work.done(folder, whole))
        if code == -signal.SIGKILL:
            tally.kills += 1
            tally.in_work += began is not None and not done
            rest -= delay
        elif not done:
            tally.corrupted.append(f"doesn't go on: {errors.strip()[-600:]}")
            fine = False
        if done:
            tally.ends += 1
            if start == 0 and began:  # the machine may have become faster
                whole.seconds = min(whole.seconds, seconds_of(folder, began))
            watch.conclude(tally)
        if done or not fine:
            # Where something is wrong already, more kills would tell nothing new.
            shutil.rmtree(folder)
            return


def torture(works, kills):
    """Kill works of one kind, side by side, until so many kills have landed."""
    total, start = Tally(works[0].what), time.monotonic()

    def lane(number):
        work, tally = works[number], Tally(works[number].what)
        share = kills * (number + 1) // len(works) - kills * number // len(works)
        chance = random.Random(f"{work.what} {number} {SEED}")
        while tally.in_work < share:
            kill_until_done(work, wholes[number], chance, tally, share)
        return tally

    with ThreadPoolExecutor(len(works)) as pool:
        wholes = list(pool.map(undisturbed, works))
        for whole in wholes:
            assert (whole.files, whole.outcome) == (wholes[0].files, wholes[0].outcome)
        for tally in pool.map(lane, range(len(works))):
            total.add(tally)
    total.seconds = time.monotonic() - start
    return total


def survive(works, kills=KILLS):
    tally = torture(works, kills)
    TALLIES.append(tally)
    assert (tally.lost, tally.corrupted, tally.left) == ([], [], []), f"seed {SEED}"
    assert tally.in_work >= kills
    assert tally.ends > 0


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A copy of Raw-Microscopy as the record has it: names to bytes."""
    top = tmp_path_factory.mktemp("published")
    views = ("bi,s,ga", "bi,s,me", "ma,s,ga")
    write_microscopy(top, size=64, intensities=(1.0, 0.5, 0.25, 0.1, 0.01), views=views)
    micro, folder = top / "microscopy", tmp_path_factory.mktemp("archives")
    everything = [f"images/{p.name}" for p in sorted((micro / "images").iterdir())]
    archives = [
        zip_folders(folder / "Raw-Microscopy-raw.zip", micro, "images/raw_scale100"),
        zip_folders(folder / "Raw-Microscopy-all.zip", micro, *everything),
    ]
    files = {path.name: path.read_bytes() for path in archives}
    files[LABELS.name] = (top / LABELS).read_bytes()
    files["microscopy.txt"] = b"what the data are"
    return files


@pytest.fixture
def servers(published):
    with ExitStack() as stack:
        yield [stack.enter_context(local_zenodo(dict(published))) for _ in range(LANES)]


def test_downloads_that_are_killed(tmp_path, servers, published):
    for server in servers:
        # So that the largest file takes about three seconds.
        server.delay = 3 / (max(map(len, published.values())) / (1 << 14))
    survive([Download(tmp_path / str(n), server) for n, server in enumerate(servers)])


def test_unpacking_that_is_killed(tmp_path, servers):
    works = [Unpacking(tmp_path / str(n), server) for n, server in enumerate(servers)]
    survive(works, KILLS // 2)


def test_tiling_that_is_killed(tmp_path):
    root, intensities = tmp_path / "data", (1.0, 0.5, 0.25, 0.1)
    write_drone_photos(root, photos=6, shape=(1024, 1536), intensities=intensities)
    write_microscopy(root, size=128, intensities=intensities)
    survive([Tiling(tmp_path / str(n), root) for n in range(LANES)], KILLS - KILLS // 2)


def test_training_that_is_killed(tmp_path):
    survive([Training(tmp_path / str(n)) for n in range(LANES)])


# What changes a disk, as audits tell of it, and which argument is the path.
_WRITES = {"open": 0, "os.mkdir": 0, "os.remove": 0, "os.rename": 1, "shutil.rmtree": 0}


def train_until(folder, last, written):
    """In a process of its own: train there, one fold, and be killed before its write of that number."""
    os.chdir(folder)
    tempfile.tempdir = str(folder / "tmp")
    places = tuple(str(folder / name) for name in ("runs", "mlruns"))

    def write(*_):
        written.value += 1
        if written.value == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event, arguments):
        if event not in _WRITES or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = arguments[_WRITES[event]]
        if not isinstance(path, int) and os.path.abspath(path).startswith(places):
            write()

    sys.addaudithook(heard)
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "commit", write)
    words = f"{Training.options} --epochs 2 --fold 0 --no_log_model".split()
    sys.exit(CliRunner().invoke(app, ["train", *words]).exit_code)


def test_training_that_is_killed_before_one_of_its_writes(tmp_path):
    """The random moments above seldom meet what lies between two writes: here each third of them, in turn."""
    work, tally = Training(tmp_path / "0"), Tally("writes")

    def train(name, last=0):
        folder, written = work.place / name, multiprocessing.Value("i")
        if not folder.exists():
            folder.mkdir()
            work.prepare(folder)
            open_client(folder)
        return folder, run_apart(train_until, folder, last, written), written.value

    folder, code, writes = train("undisturbed")
    assert code == 0
    whole = Whole(0, work.files(folder), names_in(folder), work.outcome(folder))
    for last in range(1 + SEED % 3, writes + 1, 3):
        folder, code, _ = train(str(last), last)
        assert code == -signal.SIGKILL
        assert work.done(folder, whole) or train(str(last))[1] == 0
        tally.kills += 1
        Watch(work, folder, whole).conclude(tally)
        assert (tally.lost, tally.corrupted, tally.left) == ([], [], []), f"write {last} of {writes}"
        shutil.rmtree(folder)
    assert tally.kills > 20


def test_table(capsys):
    """Print what the tests above counted."""
    if not TALLIES:
        pytest.skip("nothing was killed")
    table = pd.DataFrame(map(vars, TALLIES)).round({"seconds": 0})
    for wrong in ("lost", "corrupted", "left"):
        table[wrong] = table[wrong].map(len)
    with capsys.disabled():
        print(f"\n\nkills at random moments, seed {SEED}\n{table.to_string(index=False)}")


class Careful(Work):
    """Writes four files aside and renames them; goes on where it was."""

    what = "careful"
    write = "part = name + '.part'; slowly(part); os.replace(part, name)"
    script = """
import os, time
print("begin", flush=True)
def slowly(name):
    with open(name, "w", buffering=1) as file:
        for line in range(10):
            file.write(f"{line}\\n")
            time.sleep(0.005)
for name in ("a", "b", "c", "d"):
    if not os.path.exists(name):
        WRITE
"""
    absent = r"part$"

    def command(self, folder):
        return ["-S", "-c", self.script.replace("WRITE", self.write)]


class Hasty(Careful):
    what, write = "hasty", "slowly(name)"


class Forgetful(Careful):
    what, script = "forgetful", Careful.script.replace("not os.path.exists(name)", "True")


class Greedy(Careful):
    what, write = ("greedy", Careful.write + "; os.path.exists('notes.txt') and os.remove('notes.txt')")


class Untidy(Careful):
    what, write = ("untidy", "part = f'{name}.{os.getpid()}.part'; slowly(part); os.replace(part, name)")


@pytest.mark.parametrize(
    ("kind", "noticed"),
    [(Careful, None), (Hasty, "corrupted"), (Forgetful, "lost"), (Greedy, "lost"), (Untidy, "left")],
)
def test_programs_with_faults_are_found_out(tmp_path, kind, noticed):
    tally = torture([kind(tmp_path / "0")], kills=8)
    assert tally.kills >= tally.in_work == 8
    found = {name for name in ("lost", "corrupted", "left") if getattr(tally, name)}
    assert found == ({noticed} if noticed else set()), tally


@pytest.mark.parametrize(
    ("damage", "noticed"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "corrupted"),
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "corrupted"),
        (lambda path: path.unlink(), "lost"),
        (lambda path: os.utime(path, ns=(1, 1)), "lost"),
    ],
)
def test_a_damaged_file_is_noticed(tmp_path, damage, noticed):
    work = Careful(tmp_path / "0")
    whole = undisturbed(work)
    watch, tally = Watch(work, work.place / "undisturbed", whole), Tally("")
    assert watch.look(tally)
    damage(work.place / "undisturbed" / "c")
    assert not watch.look(tally)
    assert len(getattr(tally, noticed)) == 1
