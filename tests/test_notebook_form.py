"""The notebooks' form: the skeleton, lengths and sizes, what stands beside each widget, who can read it."""

import ast
import itertools
import json
import re
import subprocess
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest

from tests.run_notebooks import LARGEST
from tools.index import row
from tools.places import NOTEBOOKS, ROOT
from tools.solutions import exercises, solved, tags

PATHS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
SKELETON = ("What you need", "Parameters", "What you saw", "Try it", "Next")
REPOSITORY = "raw2logit/r2l"
WIDGET = "application/vnd.jupyter.widget-view+json"
EXPLORER = re.compile(r"\b\w+_explorer\(")
IMAGE = re.compile(r"<img\b[^>]*>")
ALT = re.compile(r"""\balt=(["'])\s*\S.*?\1""", re.DOTALL)
ELSEWHERE = re.compile(r"(?<![\w.])/(?:root|home|tmp|Users|work|usr)/")


class Notebook:
    """A notebook with its cells by kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = json.loads(path.read_text("utf-8"))
        self.cells = self.content["cells"]
        for cell in self.cells:
            cell["source"] = "".join(cell["source"])
        self.code = [c for c in self.cells if c["cell_type"] == "code"]
        self.markdown = [c["source"] for c in self.cells if c["cell_type"] == "markdown"]
        self.prose = "\n\n".join(self.markdown)

    def headings(self) -> list[tuple[int, str]]:
        found = re.findall(r"^(#+) (.+?)\s*$", self.prose, re.MULTILINE)
        return [(len(marks), text) for marks, text in found]


@pytest.fixture(params=PATHS, ids=lambda p: p.stem)
def notebook(request):
    return Notebook(request.param)


def outputs(cell: dict) -> list[dict]:
    return cell.get("outputs", [])


def html_of(output: dict) -> str:
    return "".join(output.get("data", {}).get("text/html", ""))


def has_figure(cell: dict) -> bool:
    return any("image/png" in o.get("data", {}) or IMAGE.search(html_of(o)) for o in outputs(cell))


def test_it_begins_with_title_promise_and_badges(notebook):
    number = notebook.path.stem[:2]
    first = notebook.markdown[0]
    assert notebook.cells[0]["cell_type"] == "markdown"
    assert re.match(rf"# {number} · \S", first)
    promise = re.search(r"^\*\*(.+)\*\*$", first, re.MULTILINE)
    assert promise, "one sentence in bold: what the reader will do"
    assert promise[1].endswith(".")
    assert not re.search(r"[.!?] [A-Z]", promise[1]), "one sentence"
    place = f"notebooks/{notebook.path.name}"
    assert f"https://mybinder.org/v2/gh/{REPOSITORY}/HEAD?labpath={quote(place, safe='')}" in first
    assert f"https://colab.research.google.com/github/{REPOSITORY}/blob/HEAD/{place}" in first
    assert row(notebook.path), "the index can be made of it"


def test_its_sections_stand_in_order(notebook):
    headings = notebook.headings()
    assert [level for level, _ in headings].count(1) == 1
    second = [text for level, text in headings if level == 2]
    assert [t for t in second if t in SKELETON] == list(SKELETON)
    assert second[0] == SKELETON[0]
    assert tuple(second[-3:]) == SKELETON[-3:]
    assert len(second) >= 7, "sections of its own"
    for (before, _), (after, text) in itertools.pairwise(headings):
        assert after <= before + 1, f"the heading {text!r} skips a level"


def test_parameters_come_first_and_are_literals(notebook):
    tagged = [c for c in notebook.code if "parameters" in c["metadata"].get("tags", [])]
    assert tagged == notebook.code[:1]
    for statement in ast.parse(tagged[0]["source"]).body:
        assert isinstance(statement, ast.Assign)
        assert all(isinstance(t, ast.Name) and t.id.isupper() for t in statement.targets)
        ast.literal_eval(statement.value)


def test_it_runs_on_colab(notebook):
    cell = notebook.code[1]["source"]
    for part in (
        'if "google.colab" in sys.modules:',
        f"!git clone --quiet --depth 1 https://github.com/{REPOSITORY} /tmp/r2l",
        "!sh /tmp/r2l/binder/colab {sys.executable}",
        "from google.colab import output",
        "output.enable_custom_widget_manager()",
    ):
        assert part in cell
    assert "r2l" not in notebook.code[0]["source"].replace(REPOSITORY, ""), "nothing imported before"
    assert notebook.content["metadata"]["kernelspec"]["name"] == "python3"


def test_it_is_of_a_length_that_people_read(notebook):
    own = {"exercise", "solution"}  # short, and the reader's; the answers are folded
    assert sum(not own & tags(cell) for cell in notebook.code) <= 20
    for cell in notebook.code:
        assert len(cell["source"].splitlines()) <= 25, cell["source"][:200]
    texts = [c for c in notebook.cells if c["cell_type"] == "markdown" and not own & tags(c)]
    read = "\n\n".join(c["source"] for c in texts)
    words = re.sub(r"\(https?:[^)]*\)", "", read).split()
    assert 600 <= len(words) <= 2000
    assert 100 * 1024 < notebook.path.stat().st_size < LARGEST, "with outputs, and not too many"


def test_a_picture_comes_soon(notebook):
    """Lines of code, neither empty nor comments, above the cell that makes the first picture."""
    lines = 0
    for cell in notebook.code:
        if "with_alt(" in cell["source"]:
            assert lines <= 20
            return
        if not cell["metadata"].get("jupyter", {}).get("source_hidden"):  # folded
            code = map(str.strip, cell["source"].splitlines())
            lines += sum(bool(line) and not line.startswith("#") for line in code)
    pytest.fail("no picture")


def test_set_up_is_folded_wherever_the_lesson_is_read(notebook):
    _, colab, imports, *_ = notebook.code
    assert re.search(r"^(from|import) r2l\b", imports["source"], re.MULTILINE)
    for cell in (colab, imports):
        assert cell["source"].startswith("# @title "), "a title in its place, on Colab"
        assert cell["metadata"]["cellView"] == "form", "on Colab"
        assert cell["metadata"]["jupyter"]["source_hidden"], "in JupyterLab"
        assert "hide-input" in tags(cell), "on the site"


def test_figures_are_as_the_package_makes_them(notebook):
    assert not any(re.search(r"rcParams|dpi\"|dpi\]", c["source"]) for c in notebook.code)


def test_its_outputs_are_those_of_one_clean_run(notebook):
    counts = [c["execution_count"] for c in notebook.code]
    assert counts == list(range(1, len(counts) + 1))
    assert "widgets" not in notebook.content["metadata"], "widget state is stripped"
    for cell in notebook.code:
        for output in outputs(cell):
            assert output["output_type"] != "error"
            text = json.dumps({k: v for k, v in output.items() if k != "metadata"})
            text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
            text = re.sub(r'"image/png": "[^"]*"', "", text)
            assert not ELSEWHERE.search(text), f"a path of the machine it ran on: {text[:300]}"


def test_its_claims_are_asserted(notebook):
    assert any("assert " in c["source"] for c in notebook.code)


def test_exercises_have_folded_answers(notebook):
    exercises = notebook.prose[notebook.prose.index("## Try it") : notebook.prose.index("## Next")]
    asked = re.findall(r"^\d+\. ", exercises, re.MULTILINE)
    folded = re.findall(r"<details>\s*<summary>.*?</summary>\n\n.+?</details>", exercises, re.DOTALL)
    assert len(asked) >= 2
    assert len(asked) == len(folded)


def test_exercises_are_checked_and_solved_apart(notebook):
    numbers = re.findall(r"^(\d+)\. ", notebook.prose[notebook.prose.index("## Try it") :], re.M)
    asked, answered = exercises(notebook.cells).values()
    lesson = notebook.path.stem[:2]
    assert {f"{lesson}.{n}" for n in numbers} <= asked == answered
    for cell in notebook.code:
        if "solution" in tags(cell):
            assert cell["metadata"]["jupyter"]["source_hidden"], "folded"
    sources = [c["source"] for c in notebook.code if "exercise" in tags(c)]
    assert any(s.startswith("guess = None") for s in sources), "a guess before the main figure,"
    assert any("print(compare(guess, " in s for s in sources), "and beside the result after it"


def test_solutions_take_the_exercises_places(notebook):
    filled = solved(nbformat.read(notebook.path, as_version=4))
    nbformat.validate(filled)
    _, answered = exercises(notebook.cells).values()
    asked, still = exercises(filled.cells).values()
    assert (asked, still) == (set(), answered)
    answers = [c for c in filled.cells if "solution" in tags(c)]
    assert not any("source_hidden" in c.metadata.get("jupyter", {}) for c in answers)


def test_figures_have_alternative_text(notebook):
    for cell in notebook.code:
        for output in outputs(cell):
            bare = "image/png" in output.get("data", {}) and "text/html" not in output["data"]
            assert not bare, f"r2l.viz.with_alt(figure, text) is missing: {cell['source'][:200]}"
            for image in IMAGE.findall(html_of(output)):
                assert ALT.search(image), image[:200]
    for alternative in re.findall(r"!\[(.*?)\]\(", notebook.prose):
        assert alternative.strip()


def test_a_static_figure_stands_beside_each_widget(notebook):
    widgets = [i for i, cell in enumerate(notebook.code) if EXPLORER.search(cell["source"])]
    assert widgets, "a widget or two"
    for i in widgets:
        around = notebook.code[max(0, i - 2) : i + 3]
        assert any(map(has_figure, around)), (
            "a reader on the web sees no widget: a static figure, please, in one of the two cells before or "
            f"after\n{notebook.code[i]['source'][:200]}"
        )


def test_links_to_files_lead_somewhere(notebook):
    for target in re.findall(r"\]\(((?!https?:|#|mailto:)[^)#]+)", notebook.prose):
        assert (notebook.path.parent / target).exists(), target


def test_nothing_that_notebooks_write_would_be_committed():
    paths = ["runs/x/y.png", "notebooks/runs/x/y.png", "data/x.tif", "notebooks/data/x.tif"]
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == paths
