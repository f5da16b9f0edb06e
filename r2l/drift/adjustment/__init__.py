"""Drift adjustment: learning the processing with the task, and adapting to a camera that has changed."""

from r2l.drift.adjustment.comparison import (
    adaptation_experiment,
    compare_adaptations,
    summarise_adaptations,
    train_on_pipelines,
)
from r2l.drift.adjustment.domains import Domain, RandomPipeline
from r2l.drift.adjustment.learning import Learning, compare_processing
from r2l.drift.adjustment.methods import METHODS, adapt
from r2l.drift.adjustment.objectives import SourceStatistics, source_statistics
from r2l.drift.adjustment.physical import PhysicalAdjustment, describe_isp
from r2l.drift.random_effects import crossed_means, paired_summary

__all__ = [
    "METHODS",
    "Domain",
    "Learning",
    "PhysicalAdjustment",
    "RandomPipeline",
    "SourceStatistics",
    "adapt",
    "adaptation_experiment",
    "compare_adaptations",
    "compare_processing",
    "crossed_means",
    "describe_isp",
    "paired_summary",
    "source_statistics",
    "summarise_adaptations",
    "train_on_pipelines",
]
