"""A sweep that has bad days: workers and drivers killed, a scheduler lost, a full disk, a run that can't be.

`make torture` runs it. What comes out must equal what an undisturbed sweep leaves, to the byte, and nothing
that was finished may be done again.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress

import pytest

from r2l.sweep import read_sweep
from r2l.sweep.jobs import RESULT
from r2l.sweep.report import PREDICTIONS, SCORES
from r2l.training.run_folder import TESTED, code_version
from r2l.training.tracking.records import query
from tests.browser import free_port
from tests.test_sweep import children, workers_of

pytestmark = pytest.mark.timeout(1800)

GRID = """
# Twenty-four small runs, and one that cannot be.
train:
  dataset: SyntheticMicroscopy
  n_images: 60
  image_size: 32
  classifier_network: SmallResNet
  epochs: 6
  batch_size: 10
  lr: 0.01
  test_pipelines: bi,s,ga me,u,me
  log_model: false
  accelerator: cpu
grid:
  - pipeline: ["bi,s,ga", "me,u,me"]
    n_splits: [3]
    fold: [0, 1, 2]
    seed: [1, 2, 3, 4]
  - pipeline: ["bi,s,ga"]
    n_splits: [1000]
    seed: [1]
"""
RUNS = 24
KILLS = int(os.environ.get("R2L_TORTURE_KILLS", "25"))


def sweep(place, *more):
    """Return the process of a sweep that has begun in a folder."""
    (place / "grid.yaml").write_text(GRID, "utf-8")
    return started(place, "r2l", "sweep", "grid.yaml", "--threads", "1", *more)


def started(place, module, *more, **streams):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    environment["OMP_NUM_THREADS"] = "1"
    line = [sys.executable, "-m", module, *map(str, more)]
    return subprocess.Popen(line, cwd=place, env=environment, text=True, **streams)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a sweep leaves to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    driver = sweep(folder, "--workers", "2")
    out, err = driver.communicate()
    assert driver.returncode == 1, err
    assert "24 finished, 1 failed" in out
    return folder / "runs" / "sweeps" / "grid"


def finished(sweep_folder):
    """Return when each finished run was finished, by its name."""
    places = sweep_folder.glob(f"runs/*/{RESULT}")
    return {path.parent.name: path.stat().st_mtime_ns for path in places}


class Witness:
    """Looks at what is finished again and again: a run that finishes twice changes its time."""

    def __init__(self, folder):
        self.folder, self.seen, self.twice = folder, {}, []

    def look(self):
        for name, when in finished(self.folder).items():
            if self.seen.setdefault(name, when) != when:
                self.twice.append(name)
        lost = set(self.seen) - set(finished(self.folder))
        assert not lost, f"finished runs are gone: {lost}"
        return len(self.seen)


def compare(sweep_folder, undisturbed):
    names = sorted(path.parent.name for path in undisturbed.glob(f"runs/*/{RESULT}"))
    assert sorted(finished(sweep_folder)) == names
    assert len(names) == RUNS
    for name in names:
        for table in (PREDICTIONS, TESTED, SCORES):
            ours, theirs = (folder / "runs" / name / table for folder in (sweep_folder, undisturbed))
            assert ours.read_bytes() == theirs.read_bytes(), (name, table)
    for table in ("runs.csv", "scores.csv", "matrix.csv"):
        assert (sweep_folder / table).read_bytes() == (undisturbed / table).read_bytes(), table


def assert_recorded_once(place):
    statement = "select name, status from runs where name like 'pipeline%n_splits=3%'"
    runs = query(statement, str(place / "mlflow.db"))
    ended = Counter(runs[runs["status"] == "FINISHED"]["name"])
    assert len(ended) == RUNS
    assert set(ended.values()) == {1}, "a run has two records"


@contextmanager
def kept_alive(make):
    """Start a process again whenever it ends, as a queue or a supervisor does; yields the present one."""
    state = {"process": make(), "on": True}

    def watch():
        while state["on"]:
            if state["process"].poll() is not None and state["on"]:
                state["process"] = make()
            time.sleep(0.3)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state["on"] = False
        thread.join(5)
        for pid in children(state["process"].pid):
            kill(pid)
        state["process"].kill()
        state["process"].wait()


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_for(what, seconds=300):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing happens any more"
        time.sleep(0.1)


def test_a_worker_killed_a_scheduler_lost_a_full_disk_and_a_run_that_cannot_be(tmp_path, undisturbed):
    folder, port = tmp_path / "runs" / "sweeps" / "grid", free_port()
    (tmp_path / "grid.yaml").write_text(GRID, "utf-8")
    full = read_sweep(tmp_path / "grid.yaml").jobs[5].folder(folder / "runs", code_version())
    full.mkdir(parents=True)
    small = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)]
    if subprocess.run(small, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    address = f"tcp://127.0.0.1:{port}"
    dask = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
    worker = ("distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard")
    worker += ("--death-timeout", "20", "--memory-limit", "0")
    witness, scheduler = Witness(folder), started(tmp_path, *dask, **silent)
    try:
        with (
            kept_alive(lambda: started(tmp_path, *worker, **silent)) as one,
            kept_alive(lambda: started(tmp_path, *worker, **silent)),
        ):
            driver = sweep(tmp_path, "--scheduler", address)
            wait_for(lambda: witness.look() >= 4)
            kill(children(one["process"].pid, "spawn_main")[-1])
            wait_for(lambda: witness.look() >= 8)
            kill(scheduler.pid)
            scheduler.wait()
            time.sleep(2)
            scheduler = started(tmp_path, *dask, **silent)
            wait_for(lambda: witness.look() >= 12)
            kill(driver.pid)
            driver.wait()
            driver = sweep(tmp_path, "--scheduler", address)
            out, err = driver.communicate(timeout=600)
            witness.look()
            assert driver.returncode == 1, err
            assert "2 failed" in out
            assert "No space left" in err or "database or disk is full" in err, err
            assert "n_splits is 1000" in err
            page = (folder / "report.html").read_text("utf-8")
            assert "What failed" in page
            assert "n_splits is 1000" in page
            subprocess.run(["umount", str(full)], check=True)
            again, _ = sweep(tmp_path, "--scheduler", address).communicate()
            assert "23 finished before, 1 finished, 1 failed" in again, again
    finally:
        scheduler.kill()
        subprocess.run(["umount", str(full)], capture_output=True)
    witness.look()
    assert witness.twice == []
    compare(folder, undisturbed)
    assert_recorded_once(tmp_path)


def test_kills_at_random_moments(tmp_path, undisturbed):
    """Drivers and workers of a local cluster, killed until there were enough kills."""
    chance, kills, sweeps = random.Random(7), Counter(), 0
    while sum(kills.values()) < KILLS:
        sweeps += 1
        place = tmp_path / str(sweeps)
        place.mkdir()
        folder = place / "runs" / "sweeps" / "grid"
        kills += until_finished(place, Witness(folder), chance, KILLS - sum(kills.values()))
        compare(folder, undisturbed)
        assert_recorded_once(place)
    print(f"\nsweep: {dict(kills)} kills in {sweeps} sweep(s) of {RUNS} runs, nothing lost, none twice")


def until_finished(place, witness, chance, most):
    """Start a sweep again and again, killing it or its workers, until it comes to its end."""
    kills = Counter()
    while True:
        driver = sweep(place, "--workers", "2", "--deaths", "99")
        wait_for(lambda d=driver: d.poll() is not None or workers_of(d.pid))
        while driver.poll() is None:
            # Whenever it comes: while a worker starts, trains, writes, or has nothing to do.
            pause(driver, chance.uniform(0.2, 9))
            found = workers_of(driver.pid)
            if driver.poll() is not None or sum(kills.values()) >= most or not found:
                pause(driver, 0.2)
                continue
            if chance.random() < 0.3:
                kills["driver"] += 1
                kill(driver.pid)
                driver.wait()
            else:
                kills["worker"] += 1
                kill(chance.choice(found))
            witness.look()
        if driver.returncode == 1:
            break
        assert driver.returncode == -signal.SIGKILL, driver.stderr.read()
    witness.look()
    assert witness.twice == []
    return kills


def pause(driver, seconds):
    end = time.monotonic() + seconds
    while driver.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def test_the_witness_sees_what_is_done_twice_and_what_is_lost(tmp_path):
    result = tmp_path / "runs" / "a" / RESULT
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    witness = Witness(tmp_path)
    assert witness.look() == 1
    os.utime(result, ns=(1, 1))
    witness.look()
    assert witness.twice == ["a"]
    result.unlink()
    with pytest.raises(AssertionError, match="are gone"):
        witness.look()
