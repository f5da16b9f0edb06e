"""Training and evaluation: task models, the loop, scores, splits; `tracking` keeps records."""

from r2l.files import need_extra, offer_late

need_extra(
    "train",
    *("cma", "lightning", "mlflow", "pytorch_msssim", "segmentation_models_pytorch"),
    *("sklearn", "torchmetrics", "torchvision"),
)

# Records are read, and sweeps planned, without what a training needs.
offer_late(
    __name__,
    {
        "r2l.datasets.splits": ["Fold", "group_folds"],
        "r2l.training.adversarial": ["Adversary"],
        "r2l.training.fit": ["fit"],
        "r2l.training.metrics": ["TASKS", "scores"],
        "r2l.training.models": [
            *("SEGMENTERS", "channel_statistics", "make_classifier", "make_regressor"),
            *("make_segmenter", "target_statistics"),
        ],
        "r2l.training.module": ["RawToLogits"],
        "r2l.training.networks": ["CLASSIFIERS"],
        "r2l.training.predict": ["predict"],
        "r2l.training.checkpoints": ["seeded"],
    },
)
