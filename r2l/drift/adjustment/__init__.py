"""Drift adjustment: learning the processing with the task, and adapting to a camera that has changed."""

from r2l.drift.adjustment.adaptation import (
    adaptation_experiment,
    compare_adaptations,
    summarise_adaptations,
    train_on_pipelines,
)
from r2l.drift.adjustment.learning import Domain, Learning, compare_processing
from r2l.drift.adjustment.methods import METHODS, adapt
from r2l.drift.adjustment.objectives import source_statistics
