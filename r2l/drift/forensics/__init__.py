"""Drift forensics: which processing breaks a model, whether that is more than chance, and what it stands."""

from r2l.datasets.frames import Frames
from r2l.drift.forensics.attack import (
    Attack,
    bounded_attack,
    penalised_attack,
    random_points,
    random_search,
    static_attack,
)
from r2l.drift.forensics.random_baseline import Comparison, attack_parameters, compare_to_random
from r2l.drift.forensics.search_space import (
    METRICS,
    Evaluator,
    ParameterSpace,
    Prober,
    SettingSpace,
    task_model,
)
from r2l.drift.forensics.sensitivity import (
    Landscape,
    Scan,
    ToleranceReport,
    landscape,
    scan,
    tolerance_report,
    verify_tolerances,
)
from r2l.drift.sensor_drift import SENSOR_SETTINGS
from r2l.isp.adjustable import AdjustableISP, Setting, camera_settings, settings_of
