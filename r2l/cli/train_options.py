"""The options of `r2l train` in groups, as data: so that its help needs none of the libraries."""

from __future__ import annotations

from typing import NamedTuple


class Option(NamedTuple):
    """One option: its name, the type that it is read as, its default, and what it does."""

    name: str
    type: type
    default: object
    help: str
    metavar: str | None = None


URI = "URI"
GROUPS: dict[str, tuple[Option, ...]] = {
    "The run": (
        Option("experiment_name", str, "r2l", "Experiment that the run belongs to."),
        Option("run_name", str, None, "Name of the run; one is made up otherwise."),
        Option(
            "tracking_uri",
            str,
            None,
            "Store of the records.  [default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here]",
            URI,
        ),
        Option("folder", str, "runs", "Where checkpoints and --save_locally go."),
        Option(
            "resume",
            bool,
            True,
            "Go on with a run of the same command line, options and data that was killed or "
            "interrupted. --no_resume begins a new one.",
        ),
        Option("test_run", bool, False, "Few images, one epoch, two folds: to see that all works."),
        Option("seed", int, 1, "Of splits, initial weights, order and augmentation."),
    ),
    "Data": (
        Option(
            "dataset",
            str,
            "Microscopy",
            "Microscopy, Drone (car or no car), DroneSegmentation; their twins made by code, which "
            "need no files: SyntheticMicroscopy, SyntheticDrone, SyntheticDroneSegmentation; or "
            "RawFolder, your own raw files.",
            "NAME",
        ),
        Option(
            "root",
            str,
            None,
            "Folder of the data; of a RawFolder's images.  [default: R2L_DATA, else ./data]",
            "FOLDER",
        ),
        Option(
            "iso",
            float,
            1.0,
            "Intensity, 1 the full exposure. Recorded are 0.01 0.05 0.1 0.25 0.5 0.75 1; twins "
            "take any.",
            "INTENSITY",
        ),
        Option("labels", str, None, "RawFolder: CSV with the columns file, label, group.", "FILE"),
        Option("masks", str, None, "RawFolder: folder of masks, for segmentation.", "FOLDER"),
        Option(
            "task",
            str,
            "auto",
            "RawFolder: classification, regression, segmentation; auto takes a CSV's labels that "
            "are all numbers for regression.",
        ),
        Option("camera", str, None, "RawFolder: microscope, drone, a JSON or raw file.", "CAMERA"),
        Option("crop", int, None, "RawFolder: cut this many pixels square out of the middle."),
        Option("n_images", int, None, "Twins: how many.  [default: as many as the real set has]"),
        Option("image_size", int, None, "Twins: side of an image in pixels.  [default: 256]"),
    ),
    "Splits": (
        Option("n_splits", int, 1, "Folds; each is a nested run. 1 makes one split."),
        Option("train_size", float, 0.8, "Share of training images where there are no folds."),
        Option(
            "splits",
            str,
            "groups",
            "groups: a slide's zone or a photograph stays on one side. published: drawn at random, "
            "overlapping, --n_splits times; scores come out too good.",
        ),
        Option("fold", int, None, "Only this fold of --n_splits.  [default: all, one by one]"),
    ),
    "Training": (
        Option("epochs", int, 5, "Passes over the training images."),
        Option("lr", float, 1e-5, "Peak learning rate of AdamW, one cycle."),
        Option("batch_size", int, 32, "Images a step."),
        Option("weight_decay", float, 1e-4, "Of AdamW."),
        Option("augmentation", str, "none", "none, weak or strong."),
        Option("check_val_every_n_epoch", int, 1, "Validate after so many epochs."),
        Option("num_workers", int, 0, "Processes that load data; 0 loads in this one."),
        Option("accelerator", str, "auto", "auto, cpu, gpu and others of Lightning."),
        Option("precision", str, "32-true", "32-true, 16-mixed, bf16-mixed and others."),
        Option("gradient_clip_val", float, None, "Longest gradient.  [default: any]"),
    ),
    "Processor": (
        Option(
            "processing_mode",
            str,
            "parametrized",
            "parametrized: learned numbers. static: fixed, see sp_. neural_network: a learned "
            "U-Net++. none: half-size colours.",
        ),
        Option(
            "processor_uri",
            str,
            None,
            "A saved processor: runs:/..., models:/..., a folder. Empty: made afresh.",
            URI,
        ),
        Option("freeze_processor", bool, False, "Don't train the processor."),
        Option("sp_debayer", str, "bilinear", "static: bilinear, malvar2004, menon2007."),
        Option(
            "sp_sharpening",
            str,
            "sharpening_filter",
            "static: sharpening_filter, unsharp_masking.",
        ),
        Option(
            "sp_denoising",
            str,
            "gaussian_denoising",
            "static: gaussian_denoising, median_denoising, fft_denoising.",
        ),
        Option(
            "output_norm",
            str,
            "none",
            "none, or batch: batch normalisation between any processor and the task model. It "
            "hides drift of brightness.",
        ),
    ),
    "Task model": (
        Option(
            "classifier_network",
            str,
            "ResNet18",
            "ResNet18, ResNet34, ResNet50; SmallResNet for small tiles.",
        ),
        Option("classifier_pretrained", bool, False, "Begin with the weights of ImageNet."),
        Option("classifier_uri", str, None, "A saved task model, as --processor_uri.", URI),
        Option("freeze_classifier", bool, False, "Don't train the task model."),
        Option(
            "smp_network",
            str,
            "unetplusplus",
            "Segmentation: unetplusplus, unet, fpn, deeplabv3plus and others of "
            "segmentation-models-pytorch.",
        ),
        Option("smp_encoder", str, "resnet34", "Encoder of segmentation and neural_network."),
        Option(
            "state_dict_uri",
            str,
            None,
            "Saved weights of both together, for models made by the other options.",
            URI,
        ),
        Option("cache_downloaded_models", bool, True, "Keep what processor_uri and others fetch."),
    ),
    "Adversarial processing": (
        Option(
            "adv_training",
            bool,
            False,
            "Search processing that misleads a fixed task model; without --classifier_uri one is "
            "trained first.",
        ),
        Option("adv_aux_weight", float, 1.0, "Weight of the distance to the original image."),
        Option("adv_aux_loss", str, "ssim", "That distance: l2 or ssim."),
        Option(
            "adv_parameters",
            str,
            "all",
            "What is searched: all, or some, with commas: black_level, white_balance, "
            "colour_correction, gamma_correct, sharpening_filter, gaussian_blur, additive_layer.",
            "NAMES",
        ),
        Option("adv_noise_layer", bool, False, "Add a layer of noise to the processor."),
        Option("adv_track_differences", bool, False, "Track differences to the original too."),
    ),
    "Tests": (
        Option(
            "test_pipelines",
            str,
            None,
            "Ask each trained model also under these static pipelines, such as 'bi,s,ga me,u,me', or "
            "under all twelve (all): a row of the train x test matrix.",
            "CODES",
        ),
    ),
    "What is kept": (
        Option("log_model", bool, True, "Processor and task model, in the run."),
        Option("save_locally", bool, False, "Processor and task model, in --folder."),
        Option("track_processing", bool, False, "Images after each stage."),
        Option("track_processing_gradients", bool, False, "Gradients at each stage."),
        Option("track_save_tensors", bool, False, "The same as numbers too (safetensors)."),
        Option("track_predictions", bool, False, "What is answered to those images."),
        Option("track_n_images", int, 5, "How many images."),
        Option("track_every_epoch", bool, False, "After each epoch, not only the last."),
    ),
}
