"""Dataset drift under control: one thing on the way from raw data to logits changes at a time."""

from r2l.drift.matrix import MatrixSummary, flips, published_matrix, summarise
from r2l.drift.synthesis import Views, develop_views, train_test_matrix

__all__ = [
    "MatrixSummary",
    "Views",
    "develop_views",
    "flips",
    "published_matrix",
    "summarise",
    "train_test_matrix",
]
