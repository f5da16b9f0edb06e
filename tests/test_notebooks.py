"""Each notebook through papermill at tiny parameters, and its widgets' callbacks at every value.

The defaults are run by nbval (`make test`); here it is shown that parameters reach the notebook.
"""

from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from r2l.datasets import SyntheticMicroscopy
from r2l.drift import develop_views, flips, train_test_matrix
from r2l.widgets import matrix_explorer

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PNG = b"\x89PNG\r\n\x1a\n"


def test_drift_synthesis_with_tiny_parameters(tmp_path):
    tiny = {
        "PIPELINES": ["bi,s,ga", "ma,s,me"],
        "N_IMAGES": 60,
        "TILE": 32,
        "FOLDS": 2,
        "EPOCHS": 1,
        "CHECK_CLAIMS": False,
        "OUTPUT": "out",
    }
    done = tmp_path / "done.ipynb"
    papermill.execute_notebook(
        str(NOTEBOOKS / "03_drift_synthesis.ipynb"),
        str(done),
        parameters=tiny,
        cwd=str(tmp_path),
        progress_bar=False,
    )
    notebook = nbformat.read(done, as_version=4)
    assert any("injected-parameters" in c.metadata.get("tags", []) for c in notebook.cells)
    out = tmp_path / "out"
    answers = pd.read_csv(out / "answers.csv")
    assert len(answers) == 60 * 2 * 2
    assert set(answers["test"]) == set(tiny["PIPELINES"])
    assert (out / "matrix.png").read_bytes().startswith(PNG)
    assert "ma,s,me" in (out / "matrix.txt").read_text("utf-8")
    assert (out / "mlflow.db").stat().st_size > 0


@pytest.fixture(scope="module")
def experiment():
    dataset = SyntheticMicroscopy(40, seed=1, size=32)
    views = develop_views(dataset, ["bi,s,ga", "me,u,me"], progress=False)
    answers = train_test_matrix(views, list(views.images), n_splits=2, epochs=1, progress=False)
    return views, answers


def test_flips_are_the_answers_that_changed(experiment):
    _, answers = experiment
    table = flips(answers, "bi,s,ga", "me,u,me")
    own = answers.query("train == 'bi,s,ga' and test == 'bi,s,ga'").set_index("image")["correct"]
    other = answers.query("train == 'bi,s,ga' and test == 'me,u,me'").set_index("image")["correct"]
    assert set(table["image"]) == set(own.index[own != other.reindex(own.index)])
    lost = int((own & ~other.reindex(own.index)).sum())
    assert (table["change"] == "lost").sum() == lost
    assert len(flips(answers, "bi,s,ga", "bi,s,ga")) == 0
    with pytest.raises(ValueError, match=r"me,u,me"):
        flips(answers, "bi,s,ga", "ma,s,ga")


def test_matrix_explorer_at_every_value(experiment):
    views, answers = experiment
    explorer = matrix_explorer(views, answers)
    menus, picture = explorer.children
    train, test, note = menus.children
    seen = set()
    for first in train.options:
        for second in test.options:
            train.value, test.value = first, second
            shown = bytes(picture.value)
            assert shown.startswith(PNG)
            seen.add(shown)
            counts = flips(answers, first, second)["change"].value_counts()
            assert note.value.startswith(f"{counts.get('lost', 0)} answers lost")
    assert len(seen) >= 2
