"""From raw sensor data to logits: camera pipelines, raw data, models, and drift under control.

The names below are imported when they are first used, so that ``import r2l`` costs nothing.

>>> import r2l
>>> r2l.StaticISP.from_code("ma,s,ga", r2l.DRONE).demosaic
'malvar2004'
"""

from r2l.files import offer_late

#: What the top level offers, by the module that has it.
_HOMES = {
    "r2l.camera": ("CFA", "DRONE", "MICROSCOPE", "Camera"),
    "r2l.files": ("R2LError",),
    "r2l.rawfile": ("RawFileError", "RawFrame", "RawLayout", "load_camera", "read_raw", "write_dng"),
    "r2l.sensor": ("NoiseModel", "record"),
    "r2l.isp": (
        *("PIPELINES", "HalfSizeRGB", "NeuralISP", "ParametrizedISP", "StaticISP"),
        *("develop_all", "load_isp", "open_pipeline", "save_isp"),
    ),
    "r2l.learn": ("learn_pipeline",),
    "r2l.datasets": (
        *("RawDrone", "RawFolder", "RawMicroscopy", "SyntheticDrone", "SyntheticMicroscopy"),
        *("Frames", "develop_views"),
    ),
    "r2l.training": (*("fit", "make_classifier", "make_regressor", "make_segmenter", "predict", "seeded"),),
    "r2l.training.loading": ("load",),
    "r2l.drift": (
        *("ShiftDetector", "corrupt", "drift_sensor", "factorial_effects"),
        *("predict_matrix", "summarise", "train_models"),
    ),
    "r2l.drift.adjustment": ("adapt",),
    "r2l.drift.forensics": ("bounded_attack", "tolerance_report"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)
offer_late(__name__, _HOMES)
