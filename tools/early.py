"""A pytest plugin that comes before all others, `pytest -p tools.early`: the sooner with the tests.

Each of xdist's processes imports and collects everything for itself, a dozen seconds of a core.
"""

import atexit
import gc
import importlib.metadata
import sys
from functools import cache

import pytest

# What is imported and collected stays: a second of looking through it for what may go.
gc.disable()
# Compiles 38 grammars, another second, when jsonschema finds it: for formats that no notebook's schema has.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
# Looked up among all that is installed, 8 ms, whenever Lightning trains: nothing is installed meanwhile.
importlib.metadata.entry_points = cache(importlib.metadata.entry_points)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Look again from the first test on, but past what stays: compilers of torch ask for a full look."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # else nanobind counts what is left at the end as leaks
    gc.enable()
