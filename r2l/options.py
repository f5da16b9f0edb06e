"""The options of an experiment: what they rule out, what follows from them unsaid, what has no effect.

`r2l train` makes its command line of them, a sweep its grid. They lie this low, and import nothing heavy
until options are made, so that the command's help needs none of the libraries.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from functools import cache
from pkgutil import resolve_name
from types import NoneType
from typing import Any, get_args, get_type_hints

from r2l.files import choose, local_path
from r2l.option_fields import TASK_OF, Declared

_PATHS = ("folder", "root", "labels", "masks", "camera", "layout")
_PATHS += ("processor_uri", "classifier_uri", "state_dict_uri")
_CODE = r"(?<![^\s+])\w+,\w+,\w+"  # of a pipeline, alone or between stages


@dataclass(frozen=True)
class Options(Declared):
    """What `r2l train` takes, with its defaults; each field is an option of the command.

    The names and most defaults are those of the program published with Oala et al., "Data Models for Dataset
    Drift Controls in Machine Learning With Optical Images", TMLR 2023. ``iso`` is the intensity.
    `resolve_options` works out what follows from what.

    Raises:
        ValueError: a value that does not exist or options that contradict each other; says which, and what
            to do.
    """

    def __post_init__(self) -> None:
        for name, kinds in _types().items():
            _check_type(name, getattr(self, name), get_args(kinds) or (kinds,))
        for name in _PATHS:
            # Of --folder=~/runs, and in files, no shell expands the home.
            if str(getattr(self, name)).startswith(("~", "file:")):
                object.__setattr__(self, name, str(local_path(getattr(self, name))))
        for name, option in FIELDS.items():
            value, default = getattr(self, name), option.default
            if value == "" and default is not None:
                raise ValueError(f"--{name} is empty: give a value, or leave it out")
            # A default is right: what would tell takes seconds to import.
            if value not in (default, None, ""):
                _check_value(name, value, option.metadata)
        _check_data(self)
        _check_models(self)

    @property
    def adversarial_parameters(self) -> tuple[str, ...]:
        """The names in ``adv_parameters``, which separates them by commas."""
        return tuple(name.strip() for name in self.adv_parameters.split(","))

    @property
    def tested_codes(self) -> tuple[str, ...]:
        """The pipelines in ``test_pipelines``, by spaces; "all" is all twelve, "all@paper" as published."""
        codes: list[str] = []
        for word in (self.test_pipelines or "").split():
            name, at, variant = word.partition("@")
            every = resolve_name("r2l.isp:PIPELINES") if name == "all" else ()
            codes += [f"{code}{at}{variant}" for code in every] or [word]
        return tuple(dict.fromkeys(codes))

    @property
    def known_task(self) -> str:
        """The task, or "auto" where only the labels will tell."""
        fixed = "segmentation" if self.masks else TASK_OF[self.dataset]
        return self.task if fixed == "auto" else fixed


#: All options by name, in the order of the help.
FIELDS: Mapping[str, Field] = {option.name: option for option in fields(Options)}


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Options)


def _check_type(name: str, value: object, kinds: tuple[type, ...]) -> None:
    """Files of options, unlike command lines, can hold anything."""
    wanted = (*kinds, int) if float in kinds else kinds
    # True is a number to Python.
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in kinds):
        words = " or ".join(k.__name__ for k in kinds if k is not NoneType)
        raise ValueError(f"--{name} is {value!r}, expected {words}")


def _check_value(name: str, value: Any, about: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a value is what the metadata of its option say it may be."""
    choices, check, least, most, above = map(about.get, ("choices", "check", "least", "most", "above"))
    if choices:
        choose(name, value, tuple(resolve_name(choices) if isinstance(choices, str) else choices))
    if least is not None and not least <= value < math.inf:
        raise ValueError(f"--{name} is {value}, expected {least} or more")
    if most is not None and value > most:
        raise ValueError(f"--{name} is {value}, expected {most} or less")
    if above is not None and not above < value < math.inf:
        raise ValueError(f"--{name} is {value}, expected a number above {above}")
    if check and value:
        try:
            resolve_name(check)(value)
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None


def _check_data(options: Options) -> None:
    if options.fold is not None and not 0 <= options.fold < options.n_splits:
        raise ValueError(
            f"--fold is {options.fold}; --n_splits {options.n_splits} makes folds 0 to {options.n_splits - 1}"
        )
    if not 0 < options.train_size < 1:
        raise ValueError(f"--train_size is {options.train_size}, expected a share between 0 and 1")
    is_folder, is_twin = options.dataset == "RawFolder", options.dataset.startswith("Synthetic")
    others = {} if is_folder else {"RawFolder": "--dataset RawFolder"}
    others |= {} if is_twin else {"Twins": "the data sets called Synthetic..."}
    for name, field in FIELDS.items():
        if (only := field.metadata.get("only")) in others and getattr(options, name) != field.default:
            raise ValueError(f"--{name} is for {others[only]}; here it is {options.dataset}")
    if is_twin and options.root is not None:
        raise ValueError("--root is where files lie; the data sets called Synthetic... have none")
    if is_folder and not options.root:
        raise ValueError("--dataset RawFolder needs --root: the folder of your raw files")
    if options.own_colours and options.camera:
        raise ValueError("--own_colours are the files': leave it out, or --camera")
    if options.foreground and options.classes:
        raise ValueError("--foreground makes one object of the masks' values: leave out --classes")
    if options.foreground and not options.masks:
        raise ValueError("--foreground is about --masks: the folder of the masks")
    if not re.fullmatch(r"[\d, ]*", options.foreground or ""):
        raise ValueError(f"--foreground is {options.foreground}, expected whole numbers, as 2,3")
    if is_folder and options.iso != 1:
        raise ValueError("--iso is for data sets of several exposures; own files have one only")
    if options.masks and options.task not in ("auto", "segmentation"):
        raise ValueError(f"--task {options.task} contradicts --masks, which are for segmentation")
    if options.task not in ("auto", options.known_task):
        fixed = options.known_task
        raise ValueError(f"--task {options.task} contradicts --dataset {options.dataset} ({fixed})")
    if options.task == "segmentation" and is_folder and not options.masks:
        raise ValueError("--task segmentation needs --masks: the folder of the masks")


def check_precision(precision: str | int | None) -> None:
    """Raise unless raw data keep their precision under a precision of Lightning's.

    Raises:
        ValueError: one that rounds all numbers to half precision, raw data and black levels with them.
    """
    if str(precision) in ("16-true", "bf16-true"):
        mixed = str(precision).replace("true", "mixed")
        raise ValueError(
            f"--precision {precision} rounds the raw data before they are processed, black level and all; "
            f"take {mixed}: the network in half precision, the processing in float32"
        )


def _check_models(options: Options) -> None:
    check_precision(options.precision)
    if options.adv_parameters != "all":
        for name in options.adversarial_parameters:
            choose("adv_parameters", name, ("all", *resolve_name("r2l.training.adversarial:PARAMETERS")))
    for code in options.tested_codes:
        _check_value("test_pipelines", code, FIELDS["pipeline"].metadata)
    if options.state_dict_uri and (options.processor_uri or options.classifier_uri):
        raise ValueError(
            "--state_dict_uri holds processor and classifier: leave out --processor_uri and "
            "--classifier_uri, or give those two instead"
        )
    learned = options.processing_mode not in (None, "static")
    if options.pipeline and (learned or options.adv_training or options.processor_uri):
        other = f"--processing_mode {options.processing_mode}" if learned else "--processor_uri, another one"
        raise ValueError(
            f"--pipeline {options.pipeline} is a fixed processor: it goes with neither {other}, nor "
            "--adv_training, which searches a parametrized one; leave out one of the two"
        )
    fixed = options.pipeline or options.processing_mode == "static"
    if options.variant != "corrected" and (options.adv_training or not fixed):
        raise ValueError(
            f"--variant {options.variant} is one of fixed processing: add --processing_mode static, or give "
            f"--pipeline bi,s,ga@{options.variant}"
        )
    other = re.search(rf"{_CODE}@(?!{options.variant}\b)(\w+)", options.pipeline or "")
    if options.variant != "corrected" and other:
        raise ValueError(f"--variant {options.variant} contradicts --pipeline {options.pipeline}: drop one")
    trained = options.classifier_uri or options.state_dict_uri
    if options.classifier_uri and options.classifier_pretrained:
        raise ValueError("--classifier_uri and --classifier_pretrained are two sources of one: choose")
    if options.adv_training and options.output_norm != "none":
        raise ValueError(
            "--adv_training needs --output_norm none: a batch normalisation would take out what the "
            "search changes"
        )
    if options.adv_training and options.test_pipelines:
        raise ValueError(
            "--test_pipelines asks the task model, which --adv_training does not change: leave it out"
        )
    if options.adv_training or not options.freeze_classifier:
        return
    if not trained:
        raise ValueError("--freeze_classifier needs a trained one: give --classifier_uri or --state_dict_uri")
    fixed = fixed or options.processing_mode == "none" or options.freeze_processor
    if fixed and not options.processor_uri:
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

    for name, field in FIELDS.items():
        # What an empty variable of the shell leaves.
        if getattr(options, name) == "" and field.default is None:
            options = replace(options, **{name: None})
            made = {"processor_uri": "processor", "classifier_uri": "classifier"}.get(name)
            afresh = f"no {made} given (--{name} is empty): made afresh"
            lines.append(afresh if made else f"--{name} is empty: taken as not given")
    if options.test_run:
        few = min(options.n_splits, 2)
        only = None if options.fold is None else min(options.fold, few - 1)
        follow("test run, few images", epochs=1, n_splits=few, fold=only)
    if options.pipeline:
        follow("a pipeline is given", processing_mode="static")
    elif options.processing_mode is None:
        options = replace(options, processing_mode="parametrized")
    if options.adv_training:
        reason = "adversarial training searches the processing against a fixed classifier"
        follow(reason, processing_mode="parametrized", freeze_classifier=True, freeze_processor=False)
    if options.variant != FIELDS["variant"].default:
        parts = {n: getattr(options, n) for n in ("sp_debayer", "sp_sharpening", "sp_denoising")}
        named = options.pipeline or resolve_name("r2l.isp.static:pipeline_code")(*parts.values())
        options = replace(options, **{name: FIELDS[name].default for name in parts})
        named, tests = _in_variant(named, options.variant), options.test_pipelines
        tests = tests and _in_variant(tests, options.variant)
        follow(f"the variant {options.variant}", pipeline=named, test_pipelines=tests)
    if options.lr is None:
        before = options.classifier_uri or options.classifier_pretrained or options.state_dict_uri
        kind = "trained before" if before else "from scratch"
        follow(f"no learning rate given, and a task model {kind}", lr=1e-5 if before else 1e-3)
    if "additive_layer" in options.adversarial_parameters and options.adv_training:
        follow("the additive layer is attacked", adv_noise_layer=True)
    details = ("track_processing_gradients", "track_save_tensors", "track_every_epoch")
    asked = [name for name in (*details, "adv_track_differences") if getattr(options, name)]
    if asked and not options.track_processing:
        follow(f"--{asked[0]} is about tracked images", track_processing=True)
    return options, lines + _without_effect(options)


def _in_variant(pipelines: str, variant: str) -> str:
    """Return pipelines, by spaces, with the variant behind each code (and "all") that names none."""
    return re.sub(rf"((?<!\S)all|{_CODE})(?=[\s+]|$)", rf"\1@{variant}", pipelines)


def _without_effect(options: Options) -> list[str]:
    """Return a line for each option that was changed from its default and does nothing here."""
    segments, n = options.known_task == "segmentation", options.n_splits
    idle = {
        "adv_": (not options.adv_training, "without --adv_training"),
        "sp_": (
            options.processing_mode != "static" or bool(options.pipeline),
            "without --processing_mode static, or with --pipeline",
        ),
        "classifier_network": (segments, "for segmentation: see --smp_encoder"),
        "smp_network": (not segments, "for classification: see --classifier_network"),
        "smp_encoder": (
            options.known_task in ("classification", "regression")
            and options.processing_mode != "neural_network",
            "for classification: see --classifier_network",
        ),
        "train_size": (
            n > 1 and options.splits == "groups",
            f"with --n_splits {n}: each fold trains on {n - 1} / {n}",
        ),
    }
    return [
        f"--{name} has no effect {reason}"
        for name, field in FIELDS.items()
        for start, (is_idle, reason) in idle.items()
        if is_idle and name.startswith(start) and getattr(options, name) != field.default
    ]
