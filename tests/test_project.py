"""The project as a whole: names, versions, parameter files, nothing that must not be committed."""

import ast
import importlib
import json
import re
import subprocess
import sys

import pytest
import yaml

import r2l
from r2l.camera import Camera
from r2l.sweep import read_sweep
from r2l.sweep.jobs import defaults
from tests.test_binder import PROJECT, ROOT, bounds, requirements

PACKAGE = ROOT / "r2l"


def test_the_top_level_has_what_it_says():
    assert set(r2l.__all__) <= set(dir(r2l))
    for name in r2l.__all__:
        assert getattr(r2l, name) is getattr(importlib.import_module(r2l._HOME_OF[name]), name)
    with pytest.raises(AttributeError, match="no attribute 'read_row'"):
        _ = r2l.read_row


def test_conda_and_pip_ask_for_the_same_versions():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    conda = bounds([d for d in conda if isinstance(d, str) and d != "pip"])
    assert conda.pop("python") == PROJECT["requires-python"]
    assert conda == bounds(requirements("all"))


@pytest.mark.parametrize(
    ("extra", "module", "statement"),
    [
        ("train", "lightning", "import r2l.training"),
        ("train", "torchvision", "import r2l; r2l.fit"),
        ("train", "mlflow", "import r2l.drift.forensics"),
        ("train", "sklearn", "from r2l.datasets.splits import group_folds as f; f([0] * 8, range(8), 2)"),
        ("train", "matplotlib", "import r2l.viz"),
        ("notebooks", "ipywidgets", "import r2l.widgets"),
        ("sweep", "distributed", "from r2l.sweep import read_sweep"),
    ],
)
def test_a_missing_extra_is_named(extra, module, statement):
    """As where only ``pip install r2l`` was run: the finder says that there is no such module."""
    code = f"""
import importlib.util, r2l.files
there = importlib.util.find_spec
r2l.files.find_spec = lambda name: None if name == {module!r} else there(name)
try:
    {statement}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"r2l[{extra}]: not installed ({module})" in done.stdout, done.stderr
    assert f"pip install 'r2l[{extra}]'" in done.stdout


def test_the_base_imports_nothing_of_the_extras():
    """What ISPs, raw files and data sets import at their top is in what plain r2l installs."""
    code = "import sys, r2l, r2l.cli, r2l.learn, r2l.sensor; from r2l.datasets import frames, folder, verify"
    code += "\nfrom r2l.datasets import splits; splits.split_indices('all', [0, 1], [0, 1])"
    code += "\n[getattr(r2l, n) for n, home in r2l._HOME_OF.items() if home.split('.')[1] not in "
    code += "('training', 'drift')]\nprint(*{m.split('.')[0] for m in sys.modules})"
    code += "\nfrom r2l.widgets import processing_explorer, raw_explorer\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, looking = (set(line.split()) for line in done.stdout.splitlines())
    assert not looking & {"lightning", "torchvision", "sklearn"}, "nor do explorers of raw data what trains"
    more = {"lightning", "mlflow", "sklearn", "torchvision", "torchmetrics", "segmentation_models_pytorch"}
    more |= {"matplotlib", "cma", "b2sdk", "dask", "distributed", "ipywidgets", "papermill", "yaml"}
    assert {"torch", "rawpy"} <= loaded
    assert not loaded & more


def test_every_import_is_a_dependency():
    named = set(bounds(requirements("all", "bench")))
    packages = {"PIL": "pillow", "sklearn": "scikit-learn", "cv2": "opencv-python-headless"}
    packages |= {"skimage": "scikit-image", "yaml": "pyyaml"}
    # These come with others.
    packages |= {"IPython": "jupyterlab", "urllib3": "requests", "sqlalchemy": "mlflow", "triton": "torch"}
    packages |= dict.fromkeys(("timm", "huggingface_hub"), "segmentation-models-pytorch")
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        tops = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        tops |= {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        foreign = tops - set(sys.stdlib_module_names) - {"r2l"}
        missing = {packages.get(t, t).replace("_", "-") for t in foreign} - named
        assert not missing, f"{path.relative_to(ROOT)} imports {missing}"


def test_every_parameter_file_fits_its_notebook():
    for path in sorted((ROOT / "notebooks" / "experiments").glob("*.yaml")):
        # Looks at each parameter.
        sweep = read_sweep(path)
        assert sweep.about, f"{path}: say below the first line what it is for"
        if path.stem.endswith("_fast"):
            (job,) = sweep.jobs
            assert job.parameters == defaults(job.notebook) | {"OUTPUT": f"runs/{path.stem}"}, path


def test_nothing_private_is_committed():
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    if not any(files):
        pytest.skip("not a git checkout")
    key = re.compile(r"K00[0-9][A-Za-z0-9+/]{20,}|AKIA[0-9A-Z]{16}")
    for name in filter(None, files):
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png"}:
            text = path.read_text("utf-8", errors="ignore")
            # Among the letters of a few pictures every short pattern occurs.
            text = re.sub(r'(;base64,|"image/png": ")[A-Za-z0-9+/=\\]+', "", text)
            assert not key.search(text), name
            assert path.stat().st_size < 1024 * 1024, name


def test_the_camera_that_the_readme_describes_is_one():
    block = re.search(r"```json\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
    assert Camera.from_dict(json.loads(block)).white_level == 4095 / 65535


def test_the_locked_versions_are_within_the_bounds_and_complete():
    """``make`` installs what constraints.txt says; a line is a name, a version and for whom."""
    from packaging.requirements import Requirement

    locked = [Requirement(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()]
    assert not [r for r in locked if r.url or [s.operator for s in r.specifier] != ["=="]]
    versions: dict[str, list[str]] = {}
    for requirement in locked:
        (pin,) = requirement.specifier
        versions.setdefault(requirement.name, []).append(pin.version)
    for requirement in map(Requirement, requirements("all", "train", "sweep", "notebooks", "test")):
        assert versions[requirement.name], requirement
        assert all(v in requirement.specifier for v in versions[requirement.name]), requirement


def test_your_own_page_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "your_own.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("\n## ")
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/your_own.md", "exec"), names)
    assert names["answers"]["train"].nunique() == 3
