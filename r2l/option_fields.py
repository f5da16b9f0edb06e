"""The options of an experiment, each declared once: its type, default, help, and what it may be."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

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


def _option(group: str, default: Any, help: str, **more: Any) -> Any:
    """Return a dataclass's field whose metadata are what else is known of an option.

    Args:
        group: heading of the help that it stands under.
        default: its value where none is given.
        help: what it does; {} stands for the choices.
        **more: ``metavar`` (its value in the help), ``choices`` (names, or where they are imported from),
            ``check`` (where what refuses a name is imported from), ``least``, ``most`` and ``above`` (bounds
            of a number) or ``only`` (data sets that it is for).
    """
    if "only" in more:
        help = f"{more['only']}: {help}"
    help = help.format(", ".join(more.get("choices", ())))
    return field(default=default, metadata={"group": group, "help": help, **more})


_GROUPS = ("The run", "Data", "Splits", "Training", "Processor", "Task model")
_GROUPS += ("Adversarial processing", "Tests", "What is kept")
_run, _data, _splits, _training, _processor, _model, _adversarial, _tests, _kept = (
    partial(_option, group) for group in _GROUPS
)
_own, _twin = (partial(_data, only=only) for only in ("RawFolder", "Twins"))


@dataclass(frozen=True)
class Declared:
    """The fields of `r2l.options.Options`."""

    experiment_name: str = _run("r2l", "Experiment that the run belongs to.")
    run_name: str | None = _run(None, "Name of the run; one is made up otherwise.")
    tracking_uri: str | None = _run(
        None, "Store of the records.  [default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here]"
    )
    folder: str = _run("runs", "Where checkpoints and --save_locally go.")
    resume: bool = _run(
        True,
        "Go on with a run of the same command line, options and data that was killed or "
        "interrupted. --no_resume begins a new one.",
    )
    test_run: bool = _run(False, "Few images, one epoch, two folds: to see that all works.")
    seed: int = _run(1, "Of splits, initial weights, order and augmentation.", least=0, most=2**32 - 1)

    dataset: str = _data(
        "Microscopy",
        "Microscopy, Drone (car or no car), DroneSegmentation; their twins made by code, which "
        "need no files: SyntheticMicroscopy, SyntheticDrone, SyntheticDroneSegmentation; or "
        "RawFolder, your own raw files.",
        metavar="NAME",
        choices=tuple(TASK_OF),
    )
    root: str | None = _data(
        None,
        "Folder of the data; of a RawFolder's images.  [default: R2L_DATA, else ./data]",
        metavar="FOLDER",
    )
    iso: float = _data(
        1.0,
        "Intensity, 1 the full exposure. Recorded are 0.01 0.05 0.1 0.25 0.5 0.75 1; twins take any.",
        metavar="INTENSITY",
        least=0,
    )
    labels: str | None = _own(None, "CSV with the columns file, label, group.", metavar="FILE")
    masks: str | None = _own(None, "folder of masks, for segmentation.", metavar="FOLDER")
    task: str = _data(
        "auto",
        "RawFolder: classification, regression, segmentation; auto takes a CSV's labels for "
        "measurements if they are numbers, and asks if these are whole.",
        choices=("auto", "classification", "regression", "segmentation"),
    )
    camera: str | None = _own(None, "microscope, drone, a JSON or raw file.", metavar="CAMERA")
    layout: str | None = _own(None, "a JSON file that describes frames without a header.", metavar="FILE")
    crop: int | None = _own(None, "cut this many pixels square out of the middle.")
    foreground: str | None = _own(
        None, "values of the masks that are the object, as 2,3.  [default: all above 0]", metavar="VALUES"
    )
    classes: str | None = _own(
        None,
        "names of the values in the masks from 0 on, as background,road,car; or of the labels, in "
        "their order.",
        metavar="NAMES",
    )
    own_colours: bool = _own(False, "each file's own white balance.")
    skip_broken: bool = _own(False, "leave out files that can't be read; the record counts them.")
    lens_corrections: bool = _own(False, "apply bad pixels, gain maps and vignetting that DNGs carry.")
    n_images: int | None = _twin(None, "how many.  [default: as many as the real set has]", least=1)
    image_size: int | None = _twin(None, "side of an image in pixels.  [default: 256]")

    n_splits: int = _splits(1, "Folds; each is a nested run. 1 makes one split.", least=1)
    train_size: float = _splits(0.8, "Share of training images where there are no folds.")
    splits: str = _splits(
        "groups",
        "groups: a slide's zone or a photograph stays on one side. published: drawn at random, "
        "overlapping, --n_splits times; scores come out too good.",
        choices=("groups", "published"),
    )
    fold: int | None = _splits(None, "Only this fold of --n_splits.  [default: all, one by one]")

    epochs: int = _training(5, "Passes over the training images.", least=1)
    lr: float | None = _training(
        None,
        "Peak learning rate of AdamW, one cycle.  [default: 1e-5 for a task model that was trained "
        "before, 1e-3 from scratch]",
        above=0,
    )
    batch_size: int = _training(32, "Images a step.", least=1)
    weight_decay: float = _training(1e-4, "Of AdamW.", least=0)
    augmentation: str = _training("none", "{}.", choices=("none", "weak", "strong"))
    check_val_every_n_epoch: int = _training(1, "Validate after so many epochs.", least=1)
    num_workers: int = _training(0, "Processes that load data; 0 loads in this one.", least=0)
    accelerator: str = _training("auto", "auto, cpu, gpu and others of Lightning.")
    precision: str = _training("32-true", "32-true, 64-true, 16-mixed, bf16-mixed.")
    gradient_clip_val: float | None = _training(None, "Longest gradient.  [default: any]", above=0)

    processing_mode: str | None = _processor(
        None,
        "parametrized: learned numbers. static: fixed, see sp_. neural_network: a learned U-Net++. none: "
        "half-size colours.  [default: static with --pipeline, else parametrized]",
        choices=("parametrized", "static", "neural_network", "none"),
    )
    pipeline: str | None = _processor(
        None,
        "Any fixed pipeline: ma,s,ga@camera, libraw:ahd, ma,s,ga+jpeg:75, the folder or runs:/... "
        "of a saved one, module:function of your own. In the place of --processing_mode and sp_.",
        check="r2l.isp.grammar:check_pipeline",
    )
    variant: str = _processor(
        "corrected",
        "Of static processing and of the codes in --pipeline and --test_pipelines: corrected, paper (as "
        "published) or camera (white balance first); ma,s,ga@paper is one code of it.",
        choices=("corrected", "paper", "camera"),
    )
    processor_uri: str | None = _processor(
        None, "A saved processor: runs:/..., models:/..., a folder. Empty: made afresh."
    )
    processor_lr: float = _processor(1.0, "Its learning rate, as a factor of --lr.", above=0)
    freeze_processor: bool = _processor(False, "Don't train the processor.")
    sp_debayer: str = _processor("bilinear", "static: {}.", choices=("bilinear", "malvar2004", "menon2007"))
    sp_sharpening: str = _processor(
        "sharpening_filter", "static: {}.", choices=("sharpening_filter", "unsharp_masking")
    )
    sp_denoising: str = _processor(
        "gaussian_denoising",
        "static: {}.",
        choices=("gaussian_denoising", "median_denoising", "fft_denoising"),
    )
    output_norm: str = _processor(
        "none",
        "none, or batch: batch normalisation between any processor and the task model. It "
        "hides drift of brightness.",
        choices="r2l.training.module:OUTPUT_NORMS",
    )

    classifier_network: str = _model(
        "ResNet18",
        "ResNet18, ResNet34, ResNet50; SmallResNet for small tiles; any classifier of torchvision "
        "(efficientnet_b0) or timm (timm:convnext_tiny); module:function of your own.",
        check="r2l.training.networks:check_network",
    )
    classifier_pretrained: bool = _model(False, "Begin with the weights of ImageNet.")
    classifier_uri: str | None = _model(None, "A saved task model, as --processor_uri.")
    freeze_classifier: bool = _model(False, "Don't train the task model.")
    smp_network: str = _model(
        "unetplusplus",
        "Segmentation: unetplusplus, unet, fpn, deeplabv3plus and others of segmentation-models-pytorch.",
        choices="r2l.training.models:SEGMENTERS",
    )
    smp_encoder: str = _model("resnet34", "Encoder of segmentation and neural_network.")
    state_dict_uri: str | None = _model(
        None, "Saved weights of both together, for models made by the other options."
    )
    cache_downloaded_models: bool = _model(True, "Keep what processor_uri and others fetch.")

    adv_training: bool = _adversarial(
        False,
        "Search processing that misleads a fixed task model; without --classifier_uri one is trained first.",
    )
    adv_aux_weight: float = _adversarial(1.0, "Weight of the distance to the original image.", least=0)
    adv_aux_loss: str = _adversarial(
        "ssim", "That distance: l2 or ssim.", choices="r2l.training.adversarial:PENALTIES"
    )
    adv_parameters: str = _adversarial(
        "all",
        "What is searched: all, or some, with commas: black_level, white_balance, "
        "colour_correction, gamma_correct, sharpening_filter, gaussian_blur, additive_layer.",
        metavar="NAMES",
    )
    adv_noise_layer: bool = _adversarial(False, "Add a layer of noise to the processor.")
    adv_track_differences: bool = _adversarial(False, "Track differences to the original too.")

    test_pipelines: str | None = _tests(
        None,
        "Ask each trained model also under these pipelines, such as 'bi,s,ga libraw:ahd me,u,me+jpeg:75', "
        "or under all twelve (all; as published, all@paper): a row of the train x test matrix.",
        metavar="PIPELINES",
    )

    log_model: bool = _kept(
        True, "Processor and task model, in the run; those of the best epoch too, in best."
    )
    save_locally: bool = _kept(False, "Processor and task model, in --folder.")
    track_processing: bool = _kept(False, "Images after each stage.")
    track_processing_gradients: bool = _kept(False, "Gradients at each stage.")
    track_save_tensors: bool = _kept(False, "The same as numbers too (safetensors).")
    track_predictions: bool = _kept(False, "What is answered to those images.")
    track_n_images: int = _kept(5, "How many images.", least=1)
    track_every_epoch: bool = _kept(False, "After each epoch, not only the last.")
