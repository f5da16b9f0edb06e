"""Image signal processors: from the mosaic that a sensor records to an image, differentiably."""

from r2l.files import offer_late
from r2l.isp.demosaic import half_size
from r2l.isp.grammar import develop_all, name_pipelines, open_pipeline
from r2l.isp.parametrized import ParametrizedISP
from r2l.isp.pipeline import StageGradient, stage_gradients
from r2l.isp.saving import load_isp, save_isp
from r2l.isp.static import PIPELINES, EngineISP, StaticISP, Variant

# The last needs what reads files.
offer_late(
    __name__,
    {
        "r2l.isp.added_stages": ["Displayed", "correct_defects", "correct_lines", "correct_shading"],
        "r2l.isp.learned": ["HalfSizeRGB", "LearnedISP", "NeuralISP"],
        "r2l.learn": ["learn_pipeline"],
    },
)
