"""The splits of `r2l.datasets.splits`, beside the training that uses them."""

from r2l.datasets.splits import Fold, HeldOut, group_folds, held_out_folds, published_resampling

__all__ = ["Fold", "HeldOut", "group_folds", "held_out_folds", "published_resampling"]
