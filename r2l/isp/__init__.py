"""Image signal processors: from the mosaic that a sensor records to an image, differentiably."""

from r2l.isp.demosaic import half_size
from r2l.isp.functional import mosaic
from r2l.isp.static import PIPELINES, StaticISP, Variant, develop_all

__all__ = ["PIPELINES", "StaticISP", "Variant", "develop_all", "half_size", "mosaic"]
