"""The tools around the notebooks: parameter files, budgets of memory, the index."""

import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import psutil
import pytest

from r2l.sweep import ParameterError, read_sweep
from r2l.sweep.jobs import _check_parameters
from tests.conftest import invoke
from tools import index, memory
from tools.memory import Watch
from tools.places import NOTEBOOKS, ROOT
from tools.until import until


def notebook_of(cells, path):
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    notebook.cells = [nbformat.v4.new_code_cell(textwrap.dedent(c)) for c in cells]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def notebooks(tmp_path):
    """A folder with one notebook."""
    parameters = "SIZE = 4\nSCALE = 1.0\nSEEDS = [0]\nCHECK = True\nOUTPUT = 'runs/x'"
    work = """
        from pathlib import Path
        if SIZE < 0:
            raise ArithmeticError("too small")
        Path(OUTPUT, "size.txt").write_text(str(SIZE * SCALE))
    """
    notebook_of([parameters, work], tmp_path / "01_one.ipynb")
    return tmp_path


def written(folder, text, name="paper_one.yaml"):
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_parameter_file_names_its_notebook_and_says_what_it_is(notebooks):
    sweep = read_sweep(written(notebooks, "# Parameters for 01_one.ipynb\n# Large,\n# twice.\nSIZE: 9\n"))
    (job,) = sweep.jobs
    assert (job.notebook, sweep.about) == (notebooks / "01_one.ipynb", "Large, twice.")
    assert job.parameters == {"SIZE": 9}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must read"),
        ("SIZE: 9\n", "the first line must read"),
        ("# Parameters for 09_none.ipynb\n", r"no notebook 09_none.ipynb\.\nThere are 01_one.ipynb"),
        ("# Parameters for 01_one.ipynb\n[1, 2\n", "no readable YAML"),
        ("# Parameters for 01_one.ipynb\n- SIZE\n", "name: value"),
    ],
)
def test_a_parameter_file_that_is_none(notebooks, text, message):
    with pytest.raises(ParameterError, match=message):
        read_sweep(written(notebooks, text))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"SIEZ": 9}, "no parameter SIEZ.\nIt has SIZE, SCALE, SEEDS, CHECK, OUTPUT"),
        ({"SEEDS": 0}, r"SEEDS is 0, but the default is \[0\]"),
        ({"SIZE": "9"}, "SIZE is '9'"),
        ({"SIZE": True}, "SIZE is True"),
        ({"CHECK": 1}, "CHECK is 1"),
    ],
)
def test_parameters_that_the_notebook_lacks_or_of_another_type(notebooks, values, message):
    with pytest.raises(ParameterError, match=message):
        _check_parameters(notebooks / "01_one.ipynb", values)


def test_values_of_the_same_kind_pass(notebooks):
    good = {"SIZE": 9, "SCALE": 2, "SEEDS": [1, 2], "CHECK": False, "OUTPUT": "x"}
    _check_parameters(notebooks / "01_one.ipynb", good)


@pytest.mark.notebook
def test_the_command_goes_on_after_a_failure_and_ends_with_1(notebooks, tmp_path, monkeypatch):
    """Each run writes into its folder; one that fails is kept there with its error; the notebook stays."""
    before = (notebooks / "01_one.ipynb").read_bytes()
    monkeypatch.chdir(tmp_path)
    unknown = written(notebooks, "# Parameters for 01_one.ipynb\nSIEZ: 1\n", "unknown.yaml")
    grid = "notebook: 01_one.ipynb\nparameters: {SCALE: 9.0}\ngrid: {SIZE: [-1, 5]}"
    files = [str(written(notebooks, grid, "sizes.yaml")), "-p", "SCALE=3"]
    wrong = invoke("sweep", unknown, *files)
    assert wrong.exit_code == 2
    assert "no parameter SIEZ" in wrong.stderr
    assert not Path("runs").exists(), "an unknown parameter is found before anything runs"
    result = invoke("sweep", *files, "--workers", "1")
    assert result.exit_code == 1
    assert "ArithmeticError: too small" in result.stderr
    (size,) = tmp_path.glob("runs/sweeps/sizes/runs/SIZE=5*/size.txt")
    assert size.read_text("utf-8") == "15"
    (kept,) = tmp_path.glob("runs/sweeps/sizes/runs/SIZE=-1*/01_one.ipynb")
    outputs = [o for c in nbformat.read(kept, as_version=4).cells for o in c.get("outputs", [])]
    assert [o["evalue"] for o in outputs if o.get("ename") == "ArithmeticError"] == ["too small"]
    assert (notebooks / "01_one.ipynb").read_bytes() == before


PARENT = """
import subprocess, sys
hold = "import sys; a = bytearray(%s * 10**6); print(flush=True); sys.stdin.read(1)"
for size in sys.stdin:
    child = subprocess.Popen(
        [sys.executable, "-c", hold % size.strip()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    print(flush=True)
    sys.stdin.readline()
    child.communicate(b"x")
    print(flush=True)
"""


def test_watch_sees_the_children_at_their_highest():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def say(text: str) -> None:
        parent.stdin.write(text + "\n")
        parent.stdin.flush()
        parent.stdout.readline()

    with Watch(parent.pid, every=0.02) as watch:
        for name, size in (("small", 20), ("large", 220)):
            watch.at = name
            say(str(size))
            for _ in range(500):
                if watch.peaks.get(name, 0) > size:
                    break
                watch._ended.wait(0.02)
            say("")
    parent.communicate()
    assert 20 < watch.peaks["small"] < 60
    assert 180 < watch.peaks["large"] - watch.peaks["small"] < 220


@pytest.mark.parametrize("listed", sorted({memory._LISTS, False}))
def test_children_of_children_are_found(listed, monkeypatch):
    monkeypatch.setattr(memory, "_LISTS", listed)
    nested = "sh -c \"sh -c 'echo; read line; :'; :\"; :"
    with subprocess.Popen(["sh", "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        process = psutil.Process(parent.pid)
        child, grandchild = memory.children(process)
        assert ([child], [grandchild]) == (process.children(), child.children())
        parent.stdin.close()
    assert memory.children(process) == []


def test_watch_does_not_count_a_fork_that_only_seems_large(monkeypatch):
    """A process seen once, as between fork and exec, is not booked; seen twice, it is."""
    looks = iter([[1], [1, 2], [1, 3], [1, 3]])
    sizes = {1: 10.0, 2: 1000.0, 3: 30.0}
    monkeypatch.setattr(memory, "used", lambda some, low: max(low, sum(map(sizes.get, some))))
    watch = Watch(every=0.001)
    ended = watch._ended
    monkeypatch.setattr(memory, "children", lambda _: next(looks, None) or ended.set() or [])
    watch.at = "all"
    with watch:
        ended.wait(10)
    assert watch.peaks["all"] == 40.0


@pytest.mark.notebook
# That one within its budget passes side by side, `make nbval` itself shows.
@pytest.mark.parametrize(
    ("mb", "ends", "side_by_side"), [(400, 0, []), (100, 1, []), (100, 1, ["-n", "2", "--dist", "loadfile"])]
)
def test_a_notebook_above_its_budget_fails_the_run(tmp_path, mb, ends, side_by_side):
    notebook_of(["import time", "a = bytearray(90 * 10**6); time.sleep(1)"], tmp_path / "big.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "tools.early", "-p", "tools.budget", "--nbval-lax"]
    command += ["-q", f"--notebook-mb={mb}", "-p", "no:cacheprovider", *side_by_side]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == ends, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert (f"OVER {mb} MB" in done.stdout) == bool(ends)


def page(tmp_path, text):
    path = tmp_path / "01_a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), path)
    return path


@pytest.mark.parametrize(
    ("needs", "minutes", "mb"),
    [
        ("About two minutes on two cores, 1.5 GB of memory.", "2", "1500"),
        ("Half a minute on two cores, 700 MB of memory.", "0.5", "700"),
        ("About a minute and 2 GB", "1", "2000"),
        ("45 seconds, 900 MB", "0.75", "900"),
    ],
)
def test_index_says_what_the_notebook_says(tmp_path, needs, minutes, mb):
    path = page(tmp_path, f"# 01 · Title\n\n**You will see.**\n\n## What you need\n\n{needs}")
    assert index.row(path) == f"| [01 · Title](01_a.ipynb) | You will see. | {minutes} | {mb} |"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("## What you need\n\nTwo minutes, 1 GB", "no title"),
        ("# T\n\nYou will", "no promise"),
        ("# T\n\n**You will**\n\n## What you need\n\nTime.", "begins with"),
        ("# T\n\n**You will**", "What you need"),
    ],
)
def test_index_says_what_a_notebook_lacks(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        index.row(page(tmp_path, text))


def test_only_what_is_between_the_marks_is_written():
    text = f"before\n{index.BEGIN}\nold\n{index.END}\nafter\n"
    assert index.with_index(text, "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="once each"):
        index.with_index("no marks", "new")


def test_the_index_is_up_to_date():
    text = index.README.read_text("utf-8")
    assert text == index.with_index(text, index.index()), "run `make index`"


def test_a_lesson_up_to_a_section_holds_it_and_says_what_is_left_out():
    def lesson():
        return nbformat.read(NOTEBOOKS / "03_drift_synthesis.ipynb", as_version=4)

    cells, shortened = lesson().cells, until(lesson(), "The matrix").cells
    assert shortened[:-1] == cells[: len(shortened) - 1]
    assert any("matrix.txt" in cell.source for cell in shortened), "make demo prints it"
    assert any("matrix.png" in cell.source for cell in shortened)
    assert "A shift detector" in shortened[-1].source
    nbformat.validate(nbformat.from_dict({**lesson(), "cells": shortened}))
    assert until(lesson(), "Next").cells == cells
    with pytest.raises(ValueError, match="The raw data, "):
        until(lesson(), "the matrices")
