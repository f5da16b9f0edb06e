"""Drift forensics: which processing breaks a given model, and how far each setting may go before it does.

Searches (`bounded_attack`, `penalised_attack`, `static_attack`) look for one setting of a pipeline under
which the model fails; `random_search` and `compare_to_random` say whether that is more than chance finds.
`tolerance_report` says what the model stands, setting by setting.
"""

from r2l.datasets.frames import Frames
from r2l.drift.forensics.adjusted import AdjustedISP
from r2l.drift.forensics.attack import Attack, bounded_attack, penalised_attack
from r2l.drift.forensics.black_box import random_points, random_search, static_attack
from r2l.drift.forensics.compare import Comparison, attack_parameters, compare_to_random
from r2l.drift.forensics.objective import METRICS, task_model
from r2l.drift.forensics.report import ToleranceReport, tolerance_report, verify_tolerances
from r2l.drift.forensics.settings import Setting, camera_settings, settings_of
from r2l.drift.forensics.space import ParameterSpace, SettingSpace
from r2l.drift.forensics.tolerance import Landscape, Prober, Scan, landscape, scan

__all__ = [
    "METRICS",
    "AdjustedISP",
    "Attack",
    "Comparison",
    "Frames",
    "Landscape",
    "ParameterSpace",
    "Prober",
    "Scan",
    "Setting",
    "SettingSpace",
    "ToleranceReport",
    "attack_parameters",
    "bounded_attack",
    "camera_settings",
    "compare_to_random",
    "landscape",
    "penalised_attack",
    "random_points",
    "random_search",
    "scan",
    "settings_of",
    "static_attack",
    "task_model",
    "tolerance_report",
    "verify_tolerances",
]
