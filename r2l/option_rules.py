"""What the options of an experiment rule out, what follows from them unsaid, and what has no effect."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from r2l.options import Options

#: Options for one kind of data set only.
_FOLDER_ONLY = ("labels", "masks", "camera", "layout", "crop")
_TWIN_ONLY = ("n_images", "image_size")


def check_data(options: Options) -> None:
    """See that the options of the data fit the data set.

    Raises:
        ValueError: they don't; says which, and what to do.
    """
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
    if options.task not in ("auto", options.known_task):
        fixed = options.known_task
        raise ValueError(f"--task {options.task} contradicts --dataset {options.dataset} ({fixed})")
    if options.masks and options.task not in ("auto", "segmentation"):
        raise ValueError(f"--task {options.task} contradicts --masks, which are for segmentation")
    if options.task == "segmentation" and is_folder and not options.masks:
        raise ValueError("--task segmentation needs --masks: the folder of the masks")


def check_models(options: Options) -> None:
    """See that processor and task model have one source each, and something to learn.

    Raises:
        ValueError: they haven't; says which options, and what to do.
    """
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


def resolve_options(options: Options) -> tuple[Options, list[str]]:
    """Return the options with all that follows from them, and a line for each thing that followed."""
    lines: list[str] = []

    def follow(reason: str, **changes: object) -> None:
        nonlocal options
        new = {name: value for name, value in changes.items() if getattr(options, name) != value}
        if new:
            options = replace(options, **new)
            listed = ", ".join(f"--{name} {value}" for name, value in new.items())
            lines.append(f"{reason}: {listed}")

    for name, field in options.__dataclass_fields__.items():
        # What an empty variable of the shell leaves.
        if getattr(options, name) == "" and field.default is None:
            options = replace(options, **{name: None})
            made = name.removesuffix("_uri")
            lines.append(
                f"no {made} given (--{name} is empty): made afresh"
                if name in ("processor_uri", "classifier_uri")
                else f"--{name} is empty: taken as not given"
            )
    if options.test_run:
        few = min(options.n_splits, 2)
        only = None if options.fold is None else min(options.fold, few - 1)
        follow("test run, few images", epochs=1, n_splits=few, fold=only)
    if options.adv_training:
        reason = "adversarial training searches the processing against a fixed classifier"
        fixed = {"freeze_classifier": True, "freeze_processor": False}
        follow(reason, processing_mode="parametrized", **fixed)
    if "additive_layer" in options.adversarial_parameters and options.adv_training:
        follow("the additive layer is attacked", adv_noise_layer=True)
    details = ("track_processing_gradients", "track_save_tensors", "track_every_epoch")
    asked = [name for name in (*details, "adv_track_differences") if getattr(options, name)]
    if asked and not options.track_processing:
        follow(f"--{asked[0]} is about tracked images", track_processing=True)
    return options, lines + _without_effect(options)


def _without_effect(options: Options) -> list[str]:
    """Return a line for each option that was changed from its default and does nothing here."""
    segments = options.known_task == "segmentation"
    idle = {
        "adv_": (not options.adv_training, "without --adv_training"),
        "sp_": (options.processing_mode != "static", "without --processing_mode static"),
        "classifier_network": (segments, "for segmentation: see --smp_encoder"),
        "smp_network": (not segments, "for classification: see --classifier_network"),
        "smp_encoder": (
            options.known_task in ("classification", "regression")
            and options.processing_mode != "neural_network",
            "for classification: see --classifier_network",
        ),
        "train_size": (
            options.n_splits > 1 and options.splits == "groups",
            f"with --n_splits {options.n_splits}: each fold trains on "
            f"{options.n_splits - 1} / {options.n_splits}",
        ),
    }
    lines = []
    for name, field in options.__dataclass_fields__.items():
        for start, (is_idle, reason) in idle.items():
            if is_idle and name.startswith(start) and getattr(options, name) != field.default:
                lines.append(f"--{name} has no effect {reason}")
    return lines
