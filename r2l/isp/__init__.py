"""Image signal processors: from the mosaic that a sensor records to an image, differentiably."""

from r2l.isp.demosaic import half_size
from r2l.isp.grammar import (
    Displayed,
    develop_all,
    name_pipelines,
    open_pipeline,
)
from r2l.isp.neural import HalfSizeRGB, NeuralISP
from r2l.isp.parametrized import ParametrizedISP
from r2l.isp.pipeline import StageGradient, stage_gradients
from r2l.isp.saving import load_isp, save_isp
from r2l.isp.static import PIPELINES, EngineISP, StaticISP, Variant
