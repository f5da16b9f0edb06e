import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forked_kernels import copied, forked_kernels


def pytest_configure() -> None:
    """Let Ctrl-C interrupt as on a terminal: xdist's processes ignore it, and so would what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: of several processes, none is to wait for a last one.

    With the notebooks themselves, since their memory is that of a process's children: others leave some.
    """
    takes = {"slow": 1, "notebook": 1, "browser": 20}
    slow: Counter[Path] = Counter()
    for item in items:
        slow[item.path] += max((takes.get(mark.name, 0) for mark in item.iter_markers()), default=0)
    items.sort(key=lambda item: (item.path.suffix != ".ipynb", -slow[item.path]))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> Iterator[None]:
    """Kernels that have imported what the lessons import."""
    with forked_kernels(tmp_path_factory.mktemp("kernels")):
        yield


def start_apart(function: Callable[..., object], *arguments: object) -> multiprocessing.Process:
    """Start a function in a process of its own.

    Forked where that may be, so that nothing is imported anew: what has trained beside a GPU may not.
    """
    import torch  # not above: xdist's driver, which runs no test, loads this file before its processes start

    context = multiprocessing.get_context("forkserver" if torch.cuda.is_available() else "fork")
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def end_apart(process: multiprocessing.Process) -> int:
    """Wait for such a process, and return its exit status: negative if a signal ended it."""
    process.join(200)
    process.kill()
    process.join()
    return process.exitcode


def run_apart(function: Callable[..., object], *arguments: object) -> int:
    """Run a function in a process of its own, and return its exit status."""
    return end_apart(start_apart(function, *arguments))


def invoke(*arguments: object) -> Any:
    """Run `r2l` in this process; a bug would come out as another exception than that which ends it."""
    from typer.testing import CliRunner

    from r2l.cli import app

    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="session")
def sample_raws() -> Path:
    """A folder with real raw files, for the tests that want them: set R2L_SAMPLE_RAWS to it."""
    folder = os.environ.get("R2L_SAMPLE_RAWS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("R2L_SAMPLE_RAWS is not set to a folder")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def copied_stores(tmp_path_factory):
    """Let mlflow's tables be made once, by one of xdist's processes, or a forked kernel, and copy the file.

    Gives the function that makes them, for a test of the making.

    Seventy steps of a second and a half, for each of a hundred stores. What is made in processes of their own
    is made from the ground up, as are the stores of the tests of the making.
    """
    from r2l.training.tracking import store

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    make = store._make_tables
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R2L_COPIED_STORE", str(folder / "mlflow.db"))
        patch.setattr(store, "_make_tables", copied(make))
        yield make
