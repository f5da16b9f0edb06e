import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sample_raws() -> Path:
    """A folder with real raw files, for the tests that want them: set R2L_SAMPLE_RAWS to it."""
    folder = os.environ.get("R2L_SAMPLE_RAWS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("R2L_SAMPLE_RAWS is not set to a folder")
    return Path(folder)
