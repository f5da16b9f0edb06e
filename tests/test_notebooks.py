"""Each notebook through papermill at tiny parameters.

The defaults are run by nbval (`make nbval`); here it is shown that parameters reach the notebook.
The values stand in notebooks/experiments/tiny_*.yaml, one file a notebook.
"""

from contextlib import chdir
from dataclasses import replace
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from r2l.camera import CFA, DRONE
from r2l.rawfile import write_dng
from r2l.sweep import read_sweep
from r2l.sweep.jobs import defaults
from r2l.sweep.runs import _run_notebook
from tests.fixtures_data import write_drone_tiles, write_microscopy
from tests.test_answers import run_cells
from tools.places import EXPERIMENTS, NOTEBOOKS

PNG = b"\x89PNG\r\n\x1a\n"
TINY = {
    job.notebook.stem: job
    for path in sorted(EXPERIMENTS.glob("tiny_*.yaml"))
    for job in read_sweep(path).jobs
}
STEMS = [path.stem for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))]


# A lesson's own checks, asked in its own kernel; that the right answers pass its solution cells assert.
WRONG_ANSWERS = """
from r2l import exercises

for _name, _exercise in exercises._EXERCISES.items():
    if isinstance(_exercise.right, str):
        _wrong = [*(value for value, _ in _exercise.hints), "none of them"]
    elif _exercise.through:
        _wrong = [lambda *a, **k: 1e6, lambda *a, **k: 1 / 0]
    else:
        _wrong = [3 * _exercise.right + 1, -2 * abs(_exercise.right) - 1, "many"]
    for _answer in _wrong:
        _verdict = exercises.check(_name, _answer)
        assert _verdict.right is False and len(str(_verdict)) > 20, (_name, _answer, _verdict)
    assert len(_wrong) >= 2 and exercises.check(_name, None).right is None
"""


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, kernels):
    """Return a function that runs a notebook at its tiny parameters, once, and says where it lies."""

    @cache
    def run_once(stem: str) -> Path:
        folder, tiny = tmp_path_factory.mktemp(stem), TINY[stem]
        notebook = nbformat.read(tiny.notebook, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell(WRONG_ANSWERS))
        (folder / "asked").mkdir()
        asked = folder / "asked" / tiny.notebook.name
        nbformat.write(notebook, asked)
        with chdir(folder):
            return _run_notebook(asked, tiny.parameters, folder)

    return run_once


@pytest.mark.notebook
@pytest.mark.parametrize("stem", STEMS)
def test_notebook_with_tiny_parameters(tiny_run, stem):
    assert stem in TINY, f"{EXPERIMENTS}/tiny_*.yaml: one whose first line names {stem}.ipynb, please"
    path = tiny_run(stem)
    notebook = nbformat.read(path, as_version=4)
    injected = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1
    values: dict[str, object] = {}
    exec(injected[0].source, values)
    for name, value in TINY[stem].parameters.items():
        assert values[name] == value
        assert value != defaults(TINY[stem].notebook)[name], f"{name} is the default anyway"
    if "OUTPUT" in defaults(TINY[stem].notebook):
        assert Path(str(values["OUTPUT"])) == path.parent
    kept = {p.relative_to(path.parent).parts[0] for p in path.parent.rglob("*") if p.is_file()}
    assert not kept & {"runs", "notebooks"}, "what it writes goes to OUTPUT, not where it runs"


@pytest.mark.notebook
def test_drift_synthesis_writes_its_answers(tiny_run):
    out = tiny_run("03_drift_synthesis").parent
    tiny = TINY["03_drift_synthesis"].parameters
    answers = pd.read_csv(out / "answers.csv")
    assert len(answers) == tiny["N_IMAGES"] * len(tiny["PIPELINES"]) ** 2
    assert set(answers["test"]) == set(tiny["PIPELINES"])
    assert (out / "matrix.png").read_bytes().startswith(PNG)
    assert "ma,s,me" in (out / "matrix.txt").read_text("utf-8")
    assert (out / "mlflow.db").stat().st_size > 0


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("notebook", "until", "sets"),
    [("01_raw_data", "cell-26", ("microscopy", "drone")), ("03_drift_synthesis", "c07", ["microscopy"])],
)
def test_published_data_are_shown_where_they_lie(notebook, until, sets, tmp_path, monkeypatch, capsys):
    shown = {}
    for place in ("empty", "present"):
        (tmp_path / place).mkdir()
        if place == "present":
            write_microscopy(tmp_path / place)
            write_drone_tiles(tmp_path / place)
        monkeypatch.setenv("R2L_DATA", str(tmp_path / place))
        parameters = {"N_IMAGES": 36, "TILE": 32, "CHECK_CLAIMS": False, "PLACE": place}
        answer = {"notebook": notebook, "until": until, "parameters": parameters}
        shown[place] = run_cells(answer, tmp_path), capsys.readouterr().out
    (without, silent), (names, said) = shown["empty"], shown["present"]
    assert without["real"] is None
    assert "published set" not in silent
    assert said.count("published set") == 1
    if "drone" in sets:
        ours, theirs = (names["tiles"][f"{whose}, tile 0"].shape for whose in ("twin", "published"))
        assert ours == theirs == (3, 32, 32)
        assert not any("published" in name for name in without["tiles"])


@pytest.mark.notebook
@pytest.mark.parametrize(("notebook", "until"), [("01_raw_data", "cell-07"), ("06_your_own_camera", "c05")])
def test_the_first_picture_is_the_readers_own(notebook, until, tmp_path):
    rng = np.random.default_rng(0)
    mosaic = rng.random((1200, 1600), np.float32)
    own = write_dng(tmp_path / "own.dng", mosaic, replace(DRONE, name="Mine", cfa=CFA.GBRG))
    parameters = {"RAW_FILE": str(own), "TILE": 64, "CHECK_CLAIMS": False}
    answer = {"notebook": notebook, "until": until, "parameters": parameters}
    names = run_cells(answer, tmp_path)
    if notebook.startswith("06"):
        assert "own.dng" in names["what"]
        n, (rows, columns) = 5, names["small"].mosaic.shape
        assert all(whole - 3 * n < n * part <= whole for whole, part in ((1200, rows), (1600, columns)))
        assert names["picture"].shape == (1, 3, rows, columns)
    else:
        assert "own.dng" in next(iter(names["pictures"]))
        assert names["camera"].name == "Mine"
