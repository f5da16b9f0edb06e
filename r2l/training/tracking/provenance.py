"""What a run was made with: the commit and the versions."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("r2l", "torch", "torchvision", "lightning", "numpy", "mlflow")


def provenance() -> dict[str, str]:
    """Return versions of Python and the main packages, and the git commit of this package's code."""
    versions = {"version.python": platform.python_version()}
    for package in PACKAGES:
        versions[f"version.{package}"] = importlib.metadata.version(package)
    # An installed copy can lie in somebody else's repository, whose commit would mean nothing.
    if _git("ls-files", "--error-unmatch", __file__):
        versions["mlflow.source.git.commit"] = _git("rev-parse", "HEAD")
        versions["git.clean"] = str(not _git("status", "--porcelain")).lower()
    return versions


def _git(*arguments: str) -> str:
    """What git says about the folder of this file; nothing where it isn't a repository."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
