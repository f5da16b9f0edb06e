"""The truth that `StaticISP` is held against: the published recipe, from independent libraries.

It lives with the benchmark, whose peer it is; nothing of r2l but the camera's numbers goes into it.
"""

from benchmarks.recipe import DEMOSAIC, published
from benchmarks.recipe import on_luma as _on_luma

__all__ = ["DEMOSAIC", "_on_luma", "published"]
