"""Binder's environment: the same bounds as pyproject.toml, in a layout that repo2docker reads.

repo2docker generates the build file, and that is looked at, which takes no Docker and no network. Whether
the versions can be had together, only a build can tell: the workflow does one.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BINDER = ROOT / "binder"
# The CPU build has its own name in conda-forge.
CONDA_NAMES = {"pytorch-cpu": "torch"}


def requirements(*extras: str) -> list[str]:
    """What the project asks for, with extras and the extras that these name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked, queue = list(project["dependencies"]), list(extras)
    while queue:
        for one in project["optional-dependencies"][queue.pop()]:
            own = re.fullmatch(r"r2l\[(.*)\]", one)
            queue += own[1].split(",") if own else []
            asked += [] if own else [one]
    return list(dict.fromkeys(asked))


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def environment():
    return yaml.safe_load((BINDER / "environment.yml").read_text("utf-8"))


def split(requirement: str) -> tuple[str, str]:
    name, mark, bound = requirement.partition(">=")
    return CONDA_NAMES.get(name.strip(), name.strip()), mark + bound.strip()


def test_binder_asks_for_the_versions_of_the_project(project, environment):
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    python = next(d for d in conda if d.startswith("python="))
    asked = dict(split(d) for d in [*conda, *pip] if d not in ("pip", python))
    assert asked == dict(map(split, requirements("all", "explorer")))

    lowest = project["requires-python"].removeprefix(">=")
    version = python.removeprefix("python=")
    assert [*map(int, version.split("."))] >= [*map(int, lowest.split("."))]


def test_torch_comes_without_cuda(environment):
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    assert environment["channels"] == ["conda-forge"]
    assert any(d.startswith("pytorch-cpu") for d in conda)
    assert any(d.startswith("torchvision") for d in conda), "pip's would bring pip's torch"


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_scripts_can_be_run(name):
    script = BINDER / name
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_start_hands_over_to_the_command():
    done = subprocess.run(
        [BINDER / "start", "sh", "-c", 'echo "$OMP_WAIT_POLICY $1"', "-", "two words"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "PASSIVE two words\n"


def test_repo2docker_makes_a_build_file(tmp_path):
    shutil.copytree(BINDER, tmp_path / "binder")
    done = subprocess.run(
        [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert '--file "binder/environment.yml"' in said
    assert "RUN ./binder/postBuild" in said
    assert 'R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in said
    copied = said.index("COPY --chown=0:0 src/ ${REPO_DIR}/")
    assert said.index('"binder/environment.yml" &&') < copied < said.index("RUN ./binder/postBuild")
