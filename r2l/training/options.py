"""The options of an experiment, checked before anything is loaded; `r2l train --help` explains them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import NoneType
from typing import get_args, get_type_hints

from r2l.isp import PIPELINES
from r2l.training.adversarial import PARAMETERS, PENALTIES
from r2l.training.augment import AUGMENTATIONS
from r2l.training.models import CLASSIFIERS, SEGMENTERS
from r2l.training.module import OUTPUT_NORMS

#: The data sets, and the task that each sets; a `RawFolder`'s labels say which.
TASK_OF = {
    "Microscopy": "classification",
    "Drone": "classification",
    "DroneSegmentation": "segmentation",
    "SyntheticMicroscopy": "classification",
    "SyntheticDrone": "classification",
    "SyntheticDroneSegmentation": "segmentation",
    "RawFolder": "auto",
}
TASKS = ("auto", "classification", "regression", "segmentation")
CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": tuple(TASK_OF),
    "task": TASKS,
    "splits": ("groups", "published"),
    "augmentation": AUGMENTATIONS,
    "processing_mode": ("parametrized", "static", "neural_network", "none"),
    "classifier_network": tuple(CLASSIFIERS),
    "smp_network": SEGMENTERS,
    "sp_debayer": ("bilinear", "malvar2004", "menon2007"),
    "sp_sharpening": ("sharpening_filter", "unsharp_masking"),
    "sp_denoising": ("gaussian_denoising", "median_denoising", "fft_denoising"),
    "output_norm": OUTPUT_NORMS,
    "adv_aux_loss": PENALTIES,
}
#: Options for one kind of data set only.
_FOLDER_ONLY = ("labels", "masks", "camera", "crop")
_TWIN_ONLY = ("n_images", "image_size")


@dataclass(frozen=True)
class Options:
    """What `r2l train` takes, with its defaults; each name is an option of the command.

    The names and most defaults are those of the program published with Oala et al., "Data Models for Dataset
    Drift Controls in Machine Learning With Optical Images", TMLR 2023. ``iso`` is the intensity.
    `r2l.training.settling.settle` works out what follows from what.

    Raises:
        ValueError: a value that does not exist or options that contradict each other; says which, and what
            to do.
    """

    experiment_name: str = "r2l"
    run_name: str | None = None
    tracking_uri: str | None = None
    folder: str = "runs"
    resume: bool = True
    test_run: bool = False
    seed: int = 1
    # Data.
    dataset: str = "Microscopy"
    root: str | None = None
    iso: float = 1.0
    task: str = "auto"
    labels: str | None = None
    masks: str | None = None
    camera: str | None = None
    crop: int | None = None
    n_images: int | None = None
    image_size: int | None = None
    # Splits.
    n_splits: int = 1
    train_size: float = 0.8
    splits: str = "groups"
    fold: int | None = None
    # Training.
    lr: float = 1e-5
    epochs: int = 5
    batch_size: int = 32
    weight_decay: float = 1e-4
    augmentation: str = "none"
    check_val_every_n_epoch: int = 1
    num_workers: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"
    gradient_clip_val: float | None = None
    # Processor.
    processing_mode: str = "parametrized"
    processor_uri: str | None = None
    freeze_processor: bool = False
    sp_debayer: str = "bilinear"
    sp_sharpening: str = "sharpening_filter"
    sp_denoising: str = "gaussian_denoising"
    output_norm: str = "none"
    # Task model.
    classifier_network: str = "ResNet18"
    classifier_pretrained: bool = False
    classifier_uri: str | None = None
    freeze_classifier: bool = False
    smp_network: str = "unetplusplus"
    smp_encoder: str = "resnet34"
    state_dict_uri: str | None = None
    cache_downloaded_models: bool = True
    # Adversarial processing.
    adv_training: bool = False
    adv_aux_weight: float = 1.0
    adv_aux_loss: str = "ssim"
    adv_parameters: str = "all"
    adv_noise_layer: bool = False
    adv_track_differences: bool = False
    # Tests.
    test_pipelines: str | None = None
    # What is kept.
    log_model: bool = True
    save_locally: bool = False
    track_processing: bool = False
    track_processing_gradients: bool = False
    track_save_tensors: bool = False
    track_predictions: bool = False
    track_n_images: int = 5
    track_every_epoch: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        for name, known in CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        for name in self.adversarial_parameters:
            _check_choice("adv_parameters", name, ("all", *PARAMETERS))
        for code in self.tested_codes:
            _check_choice("test_pipelines", code, (*PIPELINES, "all"))
        _check_numbers(self)
        _check_data(self)
        _check_models(self)

    @property
    def adversarial_parameters(self) -> tuple[str, ...]:
        """The names in ``adv_parameters``, which separates them by commas."""
        return tuple(name.strip() for name in self.adv_parameters.split(","))

    @property
    def tested_codes(self) -> tuple[str, ...]:
        """The codes in ``test_pipelines``, which separates them by spaces; "all" is all twelve."""
        codes = tuple((self.test_pipelines or "").split())
        return PIPELINES if codes == ("all",) else codes

    @property
    def known_task(self) -> str:
        """The task, or "auto" where only the labels will tell."""
        fixed = TASK_OF[self.dataset]
        return self.task if fixed == "auto" else fixed


def _check_types(options: Options) -> None:
    """Files of options, unlike command lines, can hold anything."""
    for name, hint in get_type_hints(Options).items():
        value, kinds = getattr(options, name), get_args(hint) or (hint,)
        wanted = (*kinds, int) if float in kinds else kinds
        # True is a number to Python.
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in kinds):
            words = " or ".join(k.__name__ for k in kinds if k is not NoneType)
            raise ValueError(f"--{name} is {value!r}, expected {words}")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(known)}")


def _check_numbers(options: Options) -> None:
    least = {"n_splits": 1, "epochs": 1, "batch_size": 1, "check_val_every_n_epoch": 1}
    least |= {"track_n_images": 1, "n_images": 1, "num_workers": 0, "seed": 0, "iso": 0}
    least |= {"weight_decay": 0, "adv_aux_weight": 0}
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not bound <= value < math.inf:
            raise ValueError(f"--{name} is {value}, expected {bound} or more")
    for name in ("lr", "gradient_clip_val"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name} is {value}, expected a number above 0")
    if options.fold is not None and not 0 <= options.fold < options.n_splits:
        raise ValueError(
            f"--fold is {options.fold}; --n_splits {options.n_splits} makes folds 0 to "
            f"{options.n_splits - 1}"
        )
    if not 0 < options.train_size < 1:
        raise ValueError(f"--train_size is {options.train_size}, expected a share between 0 and 1")


def _check_data(options: Options) -> None:
    is_folder, is_twin = options.dataset == "RawFolder", options.dataset.startswith("Synthetic")
    for names, fits, what in (
        (_FOLDER_ONLY, is_folder, "--dataset RawFolder"),
        (_TWIN_ONLY, is_twin, "the data sets called Synthetic..."),
    ):
        for name in names:
            if getattr(options, name) is not None and not fits:
                raise ValueError(f"--{name} is for {what}; here it is {options.dataset}")
    if is_twin and options.root is not None:
        raise ValueError("--root is where files lie; the data sets called Synthetic... have none")
    if is_folder and not options.root:
        raise ValueError("--dataset RawFolder needs --root: the folder of your raw files")
    if is_folder and options.iso != 1:
        raise ValueError("--iso is for data sets of several exposures; own files have one only")
    fixed = TASK_OF[options.dataset]
    if fixed != "auto" and options.task not in ("auto", fixed):
        raise ValueError(f"--task {options.task} contradicts --dataset {options.dataset} ({fixed})")
    if options.masks and options.task not in ("auto", "segmentation"):
        raise ValueError(f"--task {options.task} contradicts --masks, which are for segmentation")
    if options.task == "segmentation" and is_folder and not options.masks:
        raise ValueError("--task segmentation needs --masks: the folder of the masks")


def _check_models(options: Options) -> None:
    if options.state_dict_uri and (options.processor_uri or options.classifier_uri):
        raise ValueError(
            "--state_dict_uri holds processor and classifier: leave out --processor_uri and "
            "--classifier_uri, or give those two instead"
        )
    trained = options.classifier_uri or options.state_dict_uri
    if options.classifier_uri and options.classifier_pretrained:
        raise ValueError(
            "--classifier_uri and --classifier_pretrained are two sources of one: choose"
        )
    if options.adv_training and options.output_norm != "none":
        raise ValueError(
            "--adv_training needs --output_norm none: a batch normalisation would take out what the "
            "search changes"
        )
    if options.adv_training and options.test_pipelines:
        raise ValueError(
            "--test_pipelines asks the task model, which --adv_training does not change: leave it out"
        )
    if options.adv_training:
        return
    if options.freeze_classifier and not trained:
        raise ValueError(
            "--freeze_classifier needs a trained one: give --classifier_uri or --state_dict_uri"
        )
    fixed = options.processing_mode in ("static", "none") or options.freeze_processor
    if options.freeze_classifier and fixed and not options.processor_uri:
        raise ValueError(
            "nothing to train: the classifier is frozen, and so is the processor (modes static and "
            "none have nothing to learn); leave out one of the two"
        )
