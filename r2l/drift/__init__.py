"""Dataset drift under control: one thing on the way from raw data to logits changes at a time.

`r2l.drift.forensics` and `r2l.drift.adjustment` stand for themselves.
"""

from r2l.files import offer_late

# A table is read, and a sweep's matrix drawn, without what a training needs.
offer_late(
    __name__,
    {
        "r2l.drift.corruption_benchmark": ["benchmark_corruptions", "corruption_table", "sensor_table"],
        "r2l.drift.corruptions": ["PUBLISHED_CORRUPTIONS", "corrupt"],
        "r2l.drift.matrix": [
            *("drop_table", "flips", "published_corruptions", "published_matrix", "summarise")
        ],
        "r2l.drift.paired": ["factorial_effects"],
        "r2l.drift.sensor_drift": ["drift_sensor"],
        "r2l.drift.shift_detector": ["ShiftDetector", "detection_rates", "energy_test", "image_features"],
        "r2l.training.folds": ["train_models"],
        "r2l.training.predict": ["Trained", "predict_matrix"],
    },
)
