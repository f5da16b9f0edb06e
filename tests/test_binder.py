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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch", "dask-core": "dask"}
CONDA_NAMES |= {"matplotlib-base": "matplotlib"}


def requirements(*extras: str) -> list[str]:
    """What the project asks for, with extras and the extras that these name."""
    asked, queue = list(PROJECT["dependencies"]), list(extras)
    while queue:
        for one in PROJECT["optional-dependencies"][queue.pop()]:
            own = re.fullmatch(r"r2l\[(.*)\]", one)
            queue += own[1].split(",") if own else []
            asked += [] if own else [one]
    return list(dict.fromkeys(asked))


def bounds(requirements: list[str]) -> dict[str, str]:
    """Which versions are asked for, by the name that pip knows."""
    parsed = (re.match(r"([A-Za-z0-9_-]+)(.*)", r).groups() for r in requirements)
    return {CONDA_NAMES.get(name, name): bound.strip() for name, bound in parsed}


def test_binder_asks_for_the_versions_of_the_project_and_for_torch_without_cuda():
    environment = yaml.safe_load((BINDER / "environment.yml").read_text("utf-8"))
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    python = next(d for d in conda if d.startswith("python="))
    asked = bounds([d for d in [*conda, *pip] if d not in ("pip", python)])
    assert asked == bounds(requirements("all", "explorer"))

    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert [*map(int, python.removeprefix("python=").split("."))] >= [*map(int, lowest.split("."))]
    assert environment["channels"] == ["conda-forge"]
    assert any(d.startswith("pytorch-cpu") for d in conda)
    assert any(d.startswith("torchvision") for d in conda), "pip's would bring pip's torch"


@pytest.mark.parametrize("name", ["postBuild", "start", "colab"])
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


PIP = """#!/bin/sh
case $3 in list) cat there ;; install) cat "$6" > "asked.$(ls asked.* | wc -l)"; test -e works ;; esac
"""


@pytest.mark.parametrize("fits", [True, False])
def test_colab_keeps_what_it_has_and_locks_the_rest(tmp_path, fits):
    (tmp_path / "binder").mkdir()
    shutil.copy(BINDER / "colab", tmp_path / "binder")
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    loaded = ["torch==2.13.0+cu124", "NumPy==2.2.6"]
    there = [*loaded, "typing_extensions==4.1.0", "PyYAML==6.0", "-e a local package"]
    (tmp_path / "there").write_text("\n".join(there))
    if fits:
        (tmp_path / "works").touch()
    (tmp_path / "python").write_text(PIP)
    (tmp_path / "python").chmod(0o755)
    command = ["sh", tmp_path / "binder/colab", tmp_path / "python"]
    assert subprocess.run(command, capture_output=True).returncode == (0 if fits else 1)
    asked = [path.read_text().split("\n")[:-1] for path in sorted(tmp_path.glob("asked.*"))]
    locked = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    left = {"torch", "numpy", "typing-extensions", "pyyaml"}
    rest = [line for line in locked if line.split("==")[0] not in left]
    assert asked == ([[*loaded, *rest]] if fits else [[*loaded, *rest], loaded])
    assert len(rest) > 250
