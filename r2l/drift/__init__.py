"""Dataset drift under control: one thing on the way from raw data to logits changes at a time."""

from r2l.datasets import Frames, develop_views
from r2l.drift.adjustment import (
    Domain,
    Learning,
    adapt,
    adaptation_experiment,
    compare_adaptations,
    compare_processing,
    source_statistics,
    summarise_adaptations,
)
from r2l.drift.corruption_benchmark import (
    CorruptionBenchmark,
    benchmark_corruptions,
    corruption_table,
    drop_table,
    sensor_table,
)
from r2l.drift.corruptions import CORRUPTIONS, PUBLISHED_CORRUPTIONS, corrupt
from r2l.drift.factorial import factorial_effects
from r2l.drift.forensics import (
    bounded_attack,
    compare_to_random,
    penalised_attack,
    static_attack,
    tolerance_report,
    verify_tolerances,
)
from r2l.drift.matched_severity import match_amount, pipeline_distance
from r2l.drift.matrix import (
    MatrixSummary,
    flips,
    published_corruptions,
    published_matrix,
    summarise,
)
from r2l.drift.sensor_drift import SENSOR_DRIFTS, drift_sensor
from r2l.drift.shift_detector import ShiftDetector, ShiftTest, detection_rates
from r2l.drift.synthesis import train_models
from r2l.training.predict import Trained, predict_matrix

__all__ = [
    "CORRUPTIONS",
    "PUBLISHED_CORRUPTIONS",
    "SENSOR_DRIFTS",
    "CorruptionBenchmark",
    "Domain",
    "Frames",
    "Learning",
    "MatrixSummary",
    "ShiftDetector",
    "ShiftTest",
    "Trained",
    "adapt",
    "adaptation_experiment",
    "benchmark_corruptions",
    "bounded_attack",
    "compare_adaptations",
    "compare_processing",
    "compare_to_random",
    "corrupt",
    "corruption_table",
    "detection_rates",
    "develop_views",
    "drift_sensor",
    "drop_table",
    "factorial_effects",
    "flips",
    "match_amount",
    "penalised_attack",
    "pipeline_distance",
    "predict_matrix",
    "published_corruptions",
    "published_matrix",
    "sensor_table",
    "source_statistics",
    "static_attack",
    "summarise",
    "summarise_adaptations",
    "tolerance_report",
    "train_models",
    "verify_tolerances",
]
