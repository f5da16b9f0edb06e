"""Training and evaluation: task models, the loop, scores, splits; `tracking` keeps records."""

from r2l.training.evaluate import evaluate
from r2l.training.fit import RawToLogits, fit
from r2l.training.metrics import confusion, scores
from r2l.training.models import CLASSIFIERS, channel_statistics, make_classifier
from r2l.training.quiet import seeded
from r2l.training.splits import Fold, group_folds

__all__ = [
    "CLASSIFIERS",
    "Fold",
    "RawToLogits",
    "channel_statistics",
    "confusion",
    "evaluate",
    "fit",
    "group_folds",
    "make_classifier",
    "scores",
    "seeded",
]
