"""Training and evaluation: task models, the loop, scores, splits; `tracking` keeps records."""

from r2l.files import need_extra

need_extra(
    "train",
    *("cma", "lightning", "mlflow", "pytorch_msssim", "segmentation_models_pytorch"),
    *("torchmetrics", "torchvision"),
)

from r2l.datasets.splits import Fold, group_folds
from r2l.training.adversarial import Adversary
from r2l.training.augment import AUGMENTATIONS
from r2l.training.fit import fit
from r2l.training.metrics import scores
from r2l.training.models import (
    SEGMENTERS,
    channel_statistics,
    make_classifier,
    make_regressor,
    make_segmenter,
    target_statistics,
)
from r2l.training.module import RawToLogits
from r2l.training.networks import CLASSIFIERS
from r2l.training.predict import predict
from r2l.training.seeding import seeded
from r2l.training.tasks import TASKS
