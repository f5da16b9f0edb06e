"""What follows from the options of an experiment without being said, and what has no effect."""

from __future__ import annotations

from dataclasses import replace

from r2l.training.options import Options


def settle(options: Options) -> tuple[Options, list[str]]:
    """Return the options with all that follows from them, and a line for each thing that followed."""
    lines: list[str] = []

    def follow(reason: str, **changes: object) -> None:
        nonlocal options
        new = {name: value for name, value in changes.items() if getattr(options, name) != value}
        if new:
            options = replace(options, **new)
            listed = ", ".join(f"--{name} {value}" for name, value in new.items())
            lines.append(f"{reason}: {listed}")

    for name, field in Options.__dataclass_fields__.items():
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
    for name, field in Options.__dataclass_fields__.items():
        for start, (is_idle, reason) in idle.items():
            if is_idle and name.startswith(start) and getattr(options, name) != field.default:
                lines.append(f"--{name} has no effect {reason}")
    return lines
