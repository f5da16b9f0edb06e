"""The folded answers of the lessons, run as the claims are; runs and bands stand in answers.yaml."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import yaml

from tools.places import NOTEBOOKS

ANSWERS = yaml.safe_load((Path(__file__).parent / "answers.yaml").read_text("utf-8"))
_FINISHED: dict[str, dict] = {}


def run_cells(answer, folder):
    """Return the variables of a lesson that ran in this process to a cell; equal runs are shared."""
    parameters = answer.get("parameters", {})
    own = ("answer", "value", "band", "then")
    key = json.dumps({name: part for name, part in answer.items() if name not in own})
    if key in _FINISHED:
        return _FINISHED[key]
    names = {"display": print}
    cells = json.loads((NOTEBOOKS / f"{answer['notebook']}.ipynb").read_text("utf-8"))["cells"]
    assert answer["until"] in [cell["id"] for cell in cells]
    for cell in cells:
        if cell["cell_type"] != "code" or cell["id"] in answer.get("skip", ()):
            continue
        lines = "".join(cell["source"]).splitlines()
        source = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
        exec(compile(source.replace(*answer.get("replace", ("", ""))), cell["id"], "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= parameters | {"OUTPUT": str(folder)} if "OUTPUT" in names else parameters
        plt.close("all")
        if cell["id"] == answer["until"]:
            break
    _FINISHED[key] = names
    return names


@pytest.mark.notebook
@pytest.mark.parametrize("answer", [a for a in ANSWERS if "long" not in a], ids=lambda a: a["answer"])
def test_an_answer_is_true(answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_cells(answer, tmp_path)
    exec(answer.get("then", ""), names)
    value = eval(answer["value"], names)
    low, high = answer["band"]
    assert low <= float(value) <= high


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("answer", [a for a in ANSWERS if "long" in a], ids=lambda a: a["answer"])
def test_an_answer_that_trains_is_true(answer, tmp_path, monkeypatch):
    test_an_answer_is_true(answer, tmp_path, monkeypatch)
