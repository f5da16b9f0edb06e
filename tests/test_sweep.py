"""Sweeps: reading grids, what a run is known by, workers that fail, what is written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import replace
from unittest.mock import Mock

import dask
import nbformat
import pandas as pd
import psutil
import pytest
import yaml
from dask.utils import parse_timedelta
from distributed import LocalCluster, get_worker
from rich.console import Console

import r2l
from r2l.drift import summarise
from r2l.isp import PIPELINES
from r2l.sweep import ClusterError, Job, ParameterError, open_engine, read_sweep
from r2l.sweep.engine import _environment
from r2l.sweep.jobs import RESULT
from r2l.sweep.report import Outcome, _matrices, _scores_table, plan, read_outcomes, write_report
from r2l.sweep.runs import _bar, _carry_out, _ended, _setting, _until_done, run_sweep
from r2l.training.run_folder import code_version
from r2l.training.tracking.records import query
from tests.conftest import invoke
from tools.places import ROOT

TINY = """
train:
  dataset: SyntheticMicroscopy
  n_images: 24
  image_size: 16
  classifier_network: SmallResNet
  epochs: 1
  lr: 0.01
  n_splits: 2
  test_pipelines: bi,s,ga me,u,me
  log_model: false
  accelerator: cpu
grid:
  pipeline: ["bi,s,ga", "me,u,me"]
  fold: [0, 1]
"""


def written(folder, text, name="tiny.yaml"):
    path = folder / name
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def tiny(tmp_path):
    return read_sweep(written(tmp_path, TINY))


def quiet():
    return Console(file=open(os.devnull, "w", encoding="utf-8"))


def test_a_grid_is_every_combination_in_order(tiny, tmp_path):
    assert [job.name for job in tiny.jobs] == [
        "pipeline=bi_s_ga_fold=0",
        "pipeline=bi_s_ga_fold=1",
        "pipeline=me_u_me_fold=0",
        "pipeline=me_u_me_fold=1",
    ]
    options = tiny.jobs[2].options()
    assert (options.processing_mode, options.sp_debayer) == ("static", "menon2007")
    assert (options.sp_sharpening, options.sp_denoising) == ("unsharp_masking", "median_denoising")
    assert tiny.jobs[0].options(test_pipelines="all").tested_codes == PIPELINES
    # A processing mode is a pipeline too.
    changed = read_sweep(written(tmp_path, TINY.replace('"me,u,me"]', "parametrized]")))
    modes = [job.options().processing_mode for job in changed.jobs]
    assert modes == ["static", "static", "parametrized", "parametrized"]


def test_several_grids_and_values_from_outside(tmp_path):
    text = TINY[: TINY.index("grid:")] + "grid: [{fold: [0, 1]}, {seed: [5, 6, 7], fold: [1]}]\n"
    path = written(tmp_path, text)
    assert len(read_sweep(path).jobs) == 5
    (only, *_) = jobs = read_sweep(path, {"epochs": 9, "fold": 1}).jobs
    assert len(jobs) == 4, "an axis that is given has one value"
    assert (only.options().epochs, only.options().fold) == (9, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {fold: [0]}", "neither train nor notebook"),
        ("train: {}\nruns: 3", "runs is not known here"),
        ("train: [1]", "below train"),
        ("train: {}\ngrid: {fold: 0}", "fold needs a list"),
        ("train: {}\ngrid: {fold: []}", "fold needs a list"),
        ("train: {}\ngrid: 3", "below grid"),
        (f"train: {{}}\ngrid: {{seed: {list(range(400))}, fold: {list(range(400))}}}", "1.6e.05 runs"),
        ("train: {processing_mode: none}\ngrid: {pipeline: ['bi,s,ga']}", "contradicts processing_mode none"),
        ("train: {epoch: 3}", r"unknown option of a sweep .epoch. \(did you mean epochs\?\)"),
        ("train: {folder: x}", "unknown option of a sweep .folder."),
        ("train: {dataset: Moon}", "unknown dataset 'Moon'"),
        ("train: {epochs: many}", "run train: "),
        ("train: {pipeline: 'bi,s'}", "demosaic,sharpening,denoising"),
        ("train: {}\ngrid: {fold: [0], n_splits: [1, 1]}", "one and the same run"),
        ("notebook: none.ipynb", "there is no notebook none.ipynb"),
        ("train: {a: 1", "no readable YAML"),
        ("a: &a [1]\ntrain: {epochs: *a}", "line 2: aliases"),
        ("train: {test_pipelines: true}", "--test_pipelines is True, expected str"),
        ("train: {epochs: 2.5}", "--epochs is 2.5, expected int"),
        ("train: {n_splits: true}", "--n_splits is True, expected int"),
        ("train: {lr: [1]}", r"--lr is \[1\], expected float"),
        ("train: {pipeline: [1]}", "pipeline"),
        ("- a", "lines of the form"),
    ],
)
def test_a_file_that_is_no_sweep(tmp_path, text, message):
    with pytest.raises(ParameterError, match=message) as error:
        read_sweep(written(tmp_path, text))
    assert len(str(error.value).splitlines()) == 2 or "YAML" in message


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_sweeps_of_the_project_are_sweeps(path):
    sweep = read_sweep(path)
    assert sweep.about, "its comment says what it is"
    stated = [word for word in sweep.about.split() if word.isdigit() and int(word) == len(sweep.jobs)]
    assert stated or "Four" in sweep.about, f"{len(sweep.jobs)} runs, the comment says another number"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments" / "clusters").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_cluster_files_of_the_project_are_read(path, monkeypatch):
    monkeypatch.setattr("r2l.sweep.engine._cluster_class", lambda kind: None)
    engine = open_engine(cluster=path)
    assert (engine.workers, engine.threads) == (8, 4)
    words = yaml.safe_load(path.read_text("utf-8"))["options"].get("worker_extra_args", [])
    for name, value in zip(words[::2], words[1::2], strict=True):
        assert name.startswith("--lifetime")
        assert parse_timedelta(value) > 0, "as Dask's worker reads it"


@pytest.mark.slow
def test_workers_that_never_come_are_missed(monkeypatch, capsys):
    monkeypatch.setattr("r2l.sweep.engine._PATIENCE", 0.2)
    none = {"n_workers": 0, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**none) as cluster:
        engine = open_engine(scheduler=cluster.scheduler_address, wait=2)
        with pytest.raises(ClusterError, match=r"inproc://.* no worker came within 2 s"), engine.connect():
            pass
    assert "still no worker" in capsys.readouterr().err


@pytest.mark.slow
def test_a_script_that_each_worker_would_run_is_told_how(tmp_path):
    start = "from r2l.sweep import open_engine\nwith open_engine(workers=1).connect():\n    pass\n"
    script = written(tmp_path, start, "script.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    why, remedy = done.stderr.strip().splitlines()[-2:]
    assert "the workers on this machine did not start" in why
    assert "ClusterError: " in why
    assert "below if __name__ == '__main__'" in remedy


def test_the_hash_is_of_what_the_outcome_depends_on(tiny):
    job = tiny.jobs[0]
    same = Job({**job.parameters, "weight_decay": 1e-4}, {"other": "axis"})
    assert same.hash == job.hash, "a default that is written out is no other value"
    assert Job({**job.parameters, "weight_decay": 2e-4}, job.axes).hash != job.hash
    assert len({j.hash for j in tiny.jobs}) == 4


def test_the_hash_is_of_ones_own_code_and_models_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = tmp_path / "grid.yaml"
    grid.write_text("train: {dataset: SyntheticMicroscopy}\ngrid: {pipeline: ['mine:look+jpeg:75', camera/]}")
    hashes = []
    for gamma in (2.2, 1.8, 2.2):
        (tmp_path / "mine.py").write_text(
            f"def look(raw):\n    return raw.expand(-1, 3, -1, -1) ** (1 / {gamma})\n"
        )
        r2l.save_isp(r2l.ParametrizedISP(r2l.DRONE).set_(gamma=gamma), tmp_path / "camera")
        hashes.append([job.hash for job in read_sweep(grid).jobs])
    assert hashes[0] == hashes[2]
    assert not set(hashes[0]) & set(hashes[1])
    lesson = tmp_path / "own.yaml"
    shutil.copy(ROOT / "notebooks" / "03_drift_synthesis.ipynb", tmp_path)
    text = "# Parameters for 03_drift_synthesis.ipynb\nPIPELINES: ['bi,s,ga', 'mine:look+jpeg:75']\n"
    lesson.write_text(text)
    (before,) = read_sweep(lesson).jobs
    (tmp_path / "mine.py").write_text("")
    assert read_sweep(lesson).jobs[0].hash != before.hash


def test_the_hash_of_a_notebook_is_of_its_code(tmp_path):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("A = 1"), nbformat.v4.new_markdown_cell("Words.")]
    notebook.cells[0].metadata["tags"] = ["parameters"]

    def hash_now():
        nbformat.write(notebook, tmp_path / "n.ipynb")
        return Job({"A": 2}, {}, tmp_path / "n.ipynb").hash

    first = hash_now()
    notebook.cells[1].source = "Other words."
    notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text="1")]
    assert hash_now() == first
    notebook.cells[0].source = "A = 1.0"
    assert hash_now() != first


def test_the_version_of_the_code_is_that_of_the_sources(tmp_path, monkeypatch):
    package = tmp_path / "r2l"
    for name in ("__init__.py", "isp/gamma.py", "cli/train.py", "sweep/jobs.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("A = 1\n")
    monkeypatch.setattr(r2l, "__file__", str(package / "__init__.py"))
    first = code_version()
    (package / "cli" / "train.py").write_text("A = 2\n")
    (package / "sweep" / "jobs.py").write_text("A = 2\n")
    assert code_version() == first, "no result depends on these"
    (package / "isp" / "gamma.py").write_text("A = 2\n")
    assert code_version() != first


def test_runs_of_another_version_count_only_when_asked(tiny, tmp_path):
    job = tiny.jobs[0]
    old = job.folder(tmp_path, "000000")
    old.mkdir(parents=True)
    (old / RESULT).write_text('{"seconds": 1, "host": "h"}')
    now = code_version()
    assert job.folder(tmp_path, now) != old
    assert job.folder(tmp_path, now, any_code=True) == old
    assert tiny.jobs[1].folder(tmp_path, now, any_code=True).name.endswith(now[:6])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": 1}', '{"seconds": 1, "odd": 2}'])
def test_a_damaged_result_is_none(tiny, tmp_path, text):
    (tmp_path / RESULT).write_text(text)
    assert Outcome(tiny.jobs[0], tmp_path).read() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster: cloud", "unknown cluster 'cloud'"),
        ("cluster: slurm", "how many workers"),
        ("workers: [2]", r"workers is \[2\]"),
        ("threads: 0", "threads is 0"),
        ("wait: soon", "wait is 'soon'"),
        ("address: 5", "address is 5"),
        ("cluster: [slurm]", "unknown cluster"),
        ("options: 3", "below options"),
        ("cluster: local\nodd: 1", "odd is not known"),
    ],
)
def test_cluster_files_that_cannot_be(tmp_path, text, message):
    with pytest.raises(ParameterError, match=message):
        open_engine(cluster=written(tmp_path, text))


def test_a_scheduler_that_is_not_there():
    engine = open_engine(scheduler="tcp://127.0.0.1:9", wait=1)
    with (
        pytest.raises(ClusterError, match=r"//127.0.0.1:9: no Dask scheduler answers (?s:.*)dask scheduler"),
        engine.connect(),
    ):
        pass


def test_another_version_of_the_code_does_not_run(tiny, tmp_path):
    setting = _setting(tiny, open_engine(workers=1, threads=1), str(tmp_path / "m.db"))
    run = Outcome(tiny.jobs[0], tmp_path / "run")
    ended = _carry_out(run, replace(setting, code="other"))
    assert ended.state == "failed"
    assert "install the same code" in ended.error
    assert not (tmp_path / "run" / RESULT).exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_each_end_is_a_line_and_in_a_terminal_there_is_a_bar(tiny, tmp_path, monkeypatch, terminal):
    runs = read_outcomes(tiny, tmp_path)
    first, second, *_ = (run.job.name for run in runs)
    well = {"state": "finished", "seconds": 3.2, "scores": {"accuracy": 0.5}}
    badly = {"state": "failed", "seconds": 1, "error": "ValueError: [red]no"}
    how = {first: well, second: badly}

    def end(client, left, setting):
        for run in left:
            yield replace(run, **how.get(run.job.name, {"state": "finished"}))

    monkeypatch.setattr("r2l.sweep.runs._ended", end)
    engine = Mock(connect=nullcontext)
    console = Console(record=True, width=200, height=30, force_terminal=terminal, file=quiet().file)
    with _bar(console) as bar:
        assert _until_done(runs, engine, None, bar) == []
    text = console.export_text()
    wanted = [
        f"[1/4] finished  {first}  3 s, accuracy 0.500",
        f"[2/4] failed    {second}  1 s: ValueError: [red]no",
    ]
    assert all(line in text for line in wanted)
    if not terminal:
        assert text.splitlines()[:2] == wanted
        assert len(text.splitlines()) == 4
    assert ("━━" in text) == terminal


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep that was carried out, how its runs ended, and where it lies."""
    folder = tmp_path_factory.mktemp("swept")
    sweep = read_sweep(written(folder, TINY))
    engine = open_engine(workers=2, threads=1)
    runs = run_sweep(sweep, folder / "out", engine, store=str(folder / "m.db"), console=quiet())
    return sweep, runs, folder


def count(runs):
    return Counter(run.state for run in runs)


@pytest.mark.slow
def test_every_run_leaves_its_folder_and_its_record(swept):
    _, runs, folder = swept
    assert count(runs) == {"finished": 4}
    for run in runs:
        kept = {path.name for path in run.folder.iterdir()}
        assert {"result.json", "log.txt", "predictions.csv", "tested.csv", "scores.csv"} <= kept
        assert json.loads((run.folder / RESULT).read_text())["scores"] == run.scores
    records = query("select name, status from runs where name like 'pipeline%'", str(folder / "m.db"))
    assert sorted(records["name"]) == sorted(run.job.name for run in runs)
    assert set(records["status"]) == {"FINISHED"}


@pytest.mark.slow
def test_the_matrix_is_that_of_the_answers(swept):
    sweep, runs, folder = swept
    page = write_report(sweep, runs, folder / "out")
    (matrix,) = _matrices(runs)
    assert matrix["summary"].matrix().shape == (2, 2)
    # Put together by hand: what each model said about the images that it had not seen.
    tables = [
        pd.read_csv(run.folder / "tested.csv").assign(train=run.job.axes["pipeline"], seed=1) for run in runs
    ]
    assert all(list(table["test"].unique()) == ["bi,s,ga", "me,u,me"] for table in tables)
    table = pd.concat(tables)
    for (train, test), part in table.groupby(["train", "test"]):
        assert len(part) == part["image"].nunique() == 24
        assert matrix["summary"].matrix().loc[train, test] == pytest.approx(part["correct"].mean())
    assert str(matrix["summary"]) == str(summarise(table))
    text = page.read_text("utf-8")
    assert "Train x test" in text
    assert "What failed" not in text
    assert (folder / "out" / "matrix.csv").exists()
    assert len(_scores_table(runs)) == 2
    # Under its own pipeline a model says what it said in validation.
    own = pd.read_csv(runs[0].folder / "tested.csv").query("test == 'bi,s,ga'")
    said = pd.read_csv(runs[0].folder / "predictions.csv")
    assert own["p_true"].to_numpy() == pytest.approx(said["p_true"].to_numpy(), abs=1e-5)


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(swept):
    sweep, _, folder = swept

    def times():
        return {p: p.stat().st_mtime_ns for p in (folder / "out" / "runs").rglob("*") if p.is_file()}

    before = times()
    never = replace(open_engine(workers=1), start=lambda: pytest.fail("no worker is needed"))
    runs = run_sweep(sweep, folder / "out", never, store=str(folder / "m.db"), console=quiet())
    assert count(runs) == {"finished before": 4}
    assert times() == before


def test_the_plan_is_reckoned_from_what_is_finished(tiny, tmp_path):
    runs = read_outcomes(tiny, tmp_path)
    text = plan(runs, 2, tmp_path / "not" / "there")
    assert "4, of which 0 are finished and 4 are left" in text
    assert "time    not known: let one run finish (--limit 1)" in text
    for run, seconds in zip(runs[:2], (100, 200), strict=True):
        run.folder.mkdir(parents=True)
        (run.folder / "predictions.csv").write_bytes(bytes(1024 * seconds))
        replace(run, seconds=seconds).keep()
    runs = read_outcomes(tiny, tmp_path)
    lines = plan(runs, 1, tmp_path).splitlines()
    assert lines[0] == "runs    4, of which 2 are finished and 2 are left"
    assert lines[1] == ("time    300.00 s with 1 worker(s), 150.00 s a run; the mean of 2 finished run(s)")
    assert lines[2].startswith("disk    300.")
    assert "kiB more; " in lines[2]
    assert "150.00 s with 2 worker(s)" in plan(runs, 2, tmp_path)
    assert "150.00 s with 3 worker(s)" in plan(runs, 3, tmp_path), "runs are whole"
    assert "time    none" in plan([replace(run, state="finished") for run in runs], 1, tmp_path)


def test_the_page_says_what_was_trained(tmp_path):
    grid = "train: {dataset: SyntheticDrone, variant: paper, epochs: 3}\n"
    sweep = read_sweep(written(tmp_path, grid + "grid: {pipeline: ['bi,s,ga', 'ma,u,me'], lr: [0.5]}\n"))
    page = write_report(sweep, read_outcomes(sweep, tmp_path), tmp_path).read_text("utf-8")
    for told in ("SyntheticDrone", "bi,s,ga@paper; ma,u,me@paper", "3", "0.5, given", "ResNet18"):
        assert f"<td>{told}</td>" in page


@pytest.mark.slow
def test_a_worker_that_is_killed_and_a_run_that_fails(tmp_path, swept):
    """One run cannot be, and the first worker dies at work: the others end as they do undisturbed."""
    text = TINY.replace("fold: [0, 1]", "fold: [0, 1]\n  n_splits: [2, 99]")
    sweep = read_sweep(written(tmp_path, text.replace("  n_splits: 2\n", "")))
    killed = []

    def kill():
        """Kill a worker as soon as one is at work."""
        while not killed:
            workers = workers_of(os.getpid())
            if workers and list(tmp_path.glob("out/runs/*n_splits=2*/log.txt")):
                os.kill(workers[-1], signal.SIGKILL)
                killed.append(workers[-1])
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    engine = open_engine(workers=2, threads=1)
    runs = run_sweep(sweep, tmp_path / "out", engine, store=str(tmp_path / "m.db"), console=quiet())
    thread.join(5)
    assert killed
    assert count(runs) == {"finished": 4, "failed": 4}
    assert all("n_splits is 99" in run.error for run in runs if run.state == "failed")
    assert (tmp_path / "out" / "report.html").read_text("utf-8").count("n_splits is 99") >= 4
    before = {(run.job.axes["pipeline"], run.job.axes["fold"]): run.folder for run in swept[1]}
    for run in runs:
        if run.is_finished:
            undisturbed = before[run.job.axes["pipeline"], run.job.axes["fold"]]
            for name in ("predictions.csv", "tested.csv"):
                assert (run.folder / name).read_bytes() == (undisturbed / name).read_bytes()


def in_this_process(folder, monkeypatch, **options):
    """Return an engine as of a cluster file, whose workers are threads."""
    monkeypatch.setattr("r2l.sweep.engine._cluster_class", lambda kind: LocalCluster)
    options |= {"n_workers": 0, "threads_per_worker": 1, "memory_limit": 0, "processes": False}
    options |= {"dashboard_address": "127.0.0.1:0"}
    file = {"cluster": "slurm", "workers": 1, "threads": 1, "options": options}
    return open_engine(cluster=written(folder, yaml.safe_dump(file), "queue.yaml"), wait=120)


def test_a_worker_has_one_run_at_a_time(tiny, tmp_path, monkeypatch):
    """Those that wait at its door would count its death as theirs."""

    def end(run, setting):
        return replace(run, state="finished", seconds=len(get_worker().state.ready))

    monkeypatch.setattr("r2l.sweep.runs._carry_out", end)
    engine = in_this_process(tmp_path, monkeypatch)
    with engine.connect() as client:
        ended = list(_ended(client, read_outcomes(tiny, tmp_path), None))
    assert count(ended) == {"finished": 4}
    assert [run.seconds for run in ended] == [0] * 4


def test_workers_that_a_queue_ends_are_replaced(tiny, tmp_path, monkeypatch):
    """Each worker has a second to live, and all work together takes longer."""

    def end(run, setting):
        time.sleep(0.6)
        return replace(run, state="finished", host=get_worker().address)

    monkeypatch.setattr("r2l.sweep.runs._carry_out", end)
    monkeypatch.setattr("r2l.sweep.engine._RENEWAL", "200ms")
    engine = in_this_process(tmp_path, monkeypatch, lifetime="1s")
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "200ms"}), engine.connect() as client:
        ended = list(_ended(client, read_outcomes(tiny, tmp_path), None))
    assert count(ended) == {"finished": 4}, [run.error for run in ended]
    assert len({run.host for run in ended}) > 1, "one worker after the other"


def children(pid, what=""):
    """Return the ids of all that a process started, and what those did, with this in the command line."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                found += [child.pid] if what in " ".join(child.cmdline()) else []
    return found


def workers_of(pid):
    """Return the ids of a driver's workers: forked from a first process, or spawned."""
    return children(pid, "forkserver")[1:] or children(pid, "spawn_main")


@pytest.mark.slow
def test_the_command_plans_runs_and_goes_on(tmp_path, monkeypatch):
    path = written(tmp_path, TINY.replace('["bi,s,ga", "me,u,me"]', '["bi,s,ga"]'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*more):
        done = invoke("sweep", path, "--workers", "1", *more)
        assert done.exit_code == 0, done.output
        return done

    assert "[1/1] finished" in run("--limit", "1").stdout
    assert "2, of which 1 are finished and 1 are left" in run("--plan").stdout
    (tmp_path / "runs" / "sweeps" / "tiny" / "report.html").unlink()
    second = run("-p", "fold=0")
    assert "1 finished before" in second.stdout, second.stdout
    assert (tmp_path / "runs" / "sweeps" / "tiny" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_ctrl_c_while_workers_import_is_told_in_a_line(tmp_path):
    command = [sys.executable, "-m", "r2l", "sweep", str(written(tmp_path, TINY)), "--workers", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) as driver:
        while not any(p.memory_info().rss > 1e8 for p in psutil.Process(driver.pid).children()):
            time.sleep(0.02)
        os.killpg(driver.pid, signal.SIGINT)
        _, told = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert told == "interrupted: the same command goes on with what is left\n"


def test_errors_of_the_command_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, TINY)
    for arguments, message in [
        (["none.yaml"], "none.yaml: No such file"),
        ([path, "-p", "epochs"], "NAME=VALUE is expected"),
        ([path, "-p", "epochs=0"], "--epochs is 0"),
        ([path, "--workers", "0"], "--workers is 0"),
        ([path, "--cluster", "none.yaml"], "none.yaml: No such file"),
        ([path, "--cluster", "none.yaml", "--scheduler", "tcp://127.0.0.1:1"], "two ways"),
    ]:
        result = invoke("sweep", *arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") <= 2
    assert not (tmp_path / "runs").exists()


def test_gpus_are_given_out_one_each_and_cores_shared_out(monkeypatch):
    monkeypatch.setattr("r2l.sweep.engine._count_gpus", lambda: 3)
    assert open_engine().workers == 3
    assert "one GPU each of 3" in open_engine().about
    seen = [_environment(i, gpus=3, threads=2)["CUDA_VISIBLE_DEVICES"] for i in range(4)]
    assert seen == ["0", "1", "2", "0"]
    monkeypatch.setattr("r2l.sweep.engine._count_gpus", lambda: 0)
    monkeypatch.setattr("r2l.sweep.engine.usable_cores", lambda: 20)
    engine = open_engine()
    assert (engine.workers, engine.threads) == (8, 2)
    assert open_engine(workers=40).threads == 1
