"""Dataset drift under control: one thing on the way from raw data to logits changes at a time.

`r2l.drift.forensics` and `r2l.drift.adjustment` stand for themselves.
"""

from r2l.drift.corruption_benchmark import benchmark_corruptions, corruption_table, drop_table, sensor_table
from r2l.drift.corruptions import PUBLISHED_CORRUPTIONS, corrupt
from r2l.drift.factorial import factorial_effects
from r2l.drift.matrix import flips, published_corruptions, published_matrix, summarise
from r2l.drift.sensor_drift import drift_sensor
from r2l.drift.shift_detector import ShiftDetector, detection_rates, energy_test, image_features
from r2l.training.folds import train_models
from r2l.training.predict import Trained, predict_matrix
