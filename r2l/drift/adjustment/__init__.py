"""Drift adjustment: learning the processing with the task, and adapting to a camera that has changed."""

from r2l.drift.adjustment.experiments import (
    Domain,
    Learning,
    adaptation_experiment,
    compare_adaptations,
    compare_processing,
    summarise_adaptations,
    train_on_pipelines,
)
from r2l.drift.adjustment.methods import METHODS, adapt
from r2l.drift.adjustment.objectives import source_statistics
