import os
import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Let Ctrl-C interrupt as on a terminal: xdist's processes ignore it, and so would what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sample_raws() -> Path:
    """A folder with real raw files, for the tests that want them: set R2L_SAMPLE_RAWS to it."""
    folder = os.environ.get("R2L_SAMPLE_RAWS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("R2L_SAMPLE_RAWS is not set to a folder")
    return Path(folder)
