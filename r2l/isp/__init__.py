"""Image signal processors: from the mosaic that a sensor records to an image, differentiably."""

from importlib import import_module
from typing import Any

from r2l.isp.demosaic import half_size
from r2l.isp.grammar import (
    develop_all,
    name_pipelines,
    open_pipeline,
)
from r2l.isp.parametrized import ParametrizedISP
from r2l.isp.pipeline import StageGradient, stage_gradients
from r2l.isp.saving import load_isp, save_isp
from r2l.isp.static import PIPELINES, EngineISP, StaticISP, Variant

# Imported when first used; the last needs what reads files.
_LATE = {
    "Displayed": "r2l.isp.display",
    "HalfSizeRGB": "r2l.isp.neural",
    "LearnedISP": "r2l.isp.learned",
    "NeuralISP": "r2l.isp.neural",
    "learn_pipeline": "r2l.learn",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'r2l.isp' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
