"""The loop, on Lightning: `RawToLogits` holds what is trained, and `fit` trains it."""

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, Dataset

from r2l.datasets.frames import Frames
from r2l.progress import progress_bar, quiet_lightning
from r2l.training.adversarial import Adversary
from r2l.training.checkpoints import Keeper, Shuffled, seeded, settings_of
from r2l.training.metrics import Loss
from r2l.training.module import RawToLogits, frames_of, make_augment
from r2l.training.predict import underneath

# A learned processor measures its units on at most so many.
_CALIBRATION_FRAMES = 16
# A trainer of Lightning's writes and prints nothing unless it is asked to.
_QUIET = {"devices": 1, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
_QUIET |= {"enable_model_summary": False, "enable_progress_bar": False}
Model = nn.Module | Callable[[], nn.Module]


def epoch_numbers(trainer: L.Trainer) -> dict[str, float]:
    """Return the numbers of the epoch that ends (``train_loss``, ``val_loss``, ...)."""
    validated = (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
    # Lightning still shows those of the last validation in epochs that have none.
    return {name: value for name, value in numbers.items() if validated or not name.startswith("val_")}


class _Epochs(Callback):
    """Keeps the logged numbers of each epoch and moves the progress bar."""

    def __init__(self, epochs: int, progress: bool) -> None:
        self.rows: list[dict[str, float]] = []
        self.bar = progress_bar(total=epochs, desc="epochs", disable=not progress)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row = dict.fromkeys(trainer.callback_metrics, float("nan")) | epoch_numbers(trainer)
        if not math.isfinite(row["train_loss"]):
            raise ValueError(
                f"the loss of epoch {trainer.current_epoch} is {row['train_loss']}, not a number: the "
                "training ran away. Take a smaller learning rate (--lr), or bound the gradients "
                "(--gradient_clip_val)"
            )
        self.rows.append(row)
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in row.items()}, refresh=False)
        self.bar.update()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self.bar.update(len(self.rows) - self.bar.n)


def fit(
    model: Model,
    data: Dataset,
    *,
    processor: nn.Module | None = None,
    validation: Dataset | None = None,
    task: str = "classification",
    epochs: int = 10,
    batch_size: int = 32,
    lr: float = 1e-3,
    processor_lr: float = 1.0,
    weight_decay: float = 1e-4,
    loss: Loss | None = None,
    seed: int = 0,
    num_workers: int = 0,
    augmentation: str = "none",
    output_norm: str | nn.BatchNorm2d = "none",
    freeze_processor: bool = False,
    freeze_model: bool = False,
    adversary: Adversary | None = None,
    checkpoint: str | Path | None = None,
    validate_every: int = 1,
    progress: bool = True,
    callbacks: list[Callback] | None = None,
    **trainer: Any,
) -> RawToLogits:
    """Train a task model, and the processor's parameters if it has any that ask for gradients.

    Equal arguments give equal weights on a CPU. Copies are trained: ``model`` and ``processor`` stay as
    they were, and so do the global random generators.

    >>> from r2l.camera import MICROSCOPE
    >>> from r2l.datasets import SyntheticMicroscopy
    >>> from r2l.isp import StaticISP
    >>> from r2l.training import make_classifier
    >>> data = SyntheticMicroscopy(8, size=32)
    >>> trained = fit(
    ...     lambda: make_classifier("SmallResNet", len(data.classes)),
    ...     data,
    ...     processor=StaticISP(MICROSCOPE),
    ...     epochs=1,
    ...     progress=False,
    ... )
    >>> trained(data[0]["raw"][None]).shape  # from raw to logits
    torch.Size([1, 9])

    Args:
        model: the task model, or a function without arguments that makes one. The function is called
            after seeding, so that the initial weights follow from ``seed``.
        data: anything with a length and items ``dict(raw=(1, H, W) or image=(3, H, W))`` with ``label=int``,
            ``target=float`` or (n,), or ``mask=(H, W)`` of 0 and 1, as the task is; ``meta`` as in `predict`.
        processor, task, loss, output_norm, adversary: see `RawToLogits`. A `ParametrizedISP` is calibrated.
        lr, processor_lr, weight_decay, freeze_processor, freeze_model: see `RawToLogits`.
        validation: as ``data``; its loss and measure enter the history.
        batch_size: images a step (on each device).
        seed: of initial weights, order of the images, augmentation and dropout, 0 or more.
        num_workers: processes that load data; 0 loads in this one.
        augmentation: "none", "weak" or "strong", of images in training, see `make_augment`.
        checkpoint: a folder. After each epoch a checkpoint is written there; when it holds one of equal
            settings, the run goes on from it to the weights that it would have had uninterrupted (to the
            bit on a CPU), and one that is finished is returned at once.
        validate_every: epochs from one validation to the next; the others have NaN in the history.
        callbacks: further ones of Lightning.
        **trainer: further arguments of `lightning.Trainer` (``accelerator``, ``devices``, ``num_nodes``,
            ``strategy``, ``precision``, ``gradient_clip_val``, ...). On several devices the order of images
            is that of Lightning's distributed sampler: it follows from the epoch, not from ``seed``. With
            strategies that spawn or fork processes, the history comes back by ``checkpoint`` only; "ddp"
            in a script needs none.

    Returns:
        The trained module, in eval mode, on the CPU.

    Raises:
        ValueError: no data, no epochs, an option that does not exist, nothing left to train, items or a
            model that don't fit the task; a checkpoint of other settings, or one that is damaged; a loss that
            is not a number any more.
        R2LError: of the data, also where processes load them.
        KeyboardInterrupt: when interrupted; the last checkpoint stays.
    """
    if len(data) == 0 or epochs < 1 or validate_every < 1:
        raise ValueError(
            f"nothing to train on: {len(data)} images, {epochs} epochs, validated every {validate_every}"
        )
    if adversary is not None and freeze_processor:
        raise ValueError("an adversary searches the processor: freeze_processor has to be False")
    counter = _Epochs(epochs, progress)
    with seeded(seed), quiet_lightning(), counter.bar, _interruptible():
        module = RawToLogits(
            copy.deepcopy(model) if isinstance(model, nn.Module) else model(),
            copy.deepcopy(processor),
            loss,
            lr,
            weight_decay,
            task=task,
            processor_lr=processor_lr,
            augment=make_augment(augmentation),
            output_norm=copy.deepcopy(output_norm),
            freeze_processor=freeze_processor,
            freeze_model=freeze_model,
            adversary=adversary,
        )
        calibrate = getattr(module.processor, "calibrate", None)
        if calibrate and "processor" not in module.frozen:
            some = range(0, len(data), -(-len(data) // _CALIBRATION_FRAMES))
            calibrate(torch.stack([frames_of(data[row]) for row in some]))
        # A model that was evaluated before comes in eval mode, in which Lightning would leave it.
        module.train()
        module.model.to(memory_format=torch.channels_last)  # as those of `r2l.training.models` are
        loading = {"batch_size": batch_size, "num_workers": num_workers}
        ordered = None if validation is None else _loader(DataLoader, validation, **loading)
        shuffled = _loader(
            Shuffled,
            data,
            **loading,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            # A last batch of one image has no variance for batch normalisation to divide by.
            drop_last=len(data) > batch_size and len(data) % batch_size == 1,
        )
        options = {"max_epochs": epochs, "check_val_every_n_epoch": validate_every, **_QUIET, **trainer}
        options["callbacks"] = [counter, *(callbacks or [])]
        settings = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
        settings |= {"augmentation": augmentation, "validate_every": validate_every}
        if checkpoint is None:
            L.Trainer(**options).fit(module, shuffled, ordered)
        else:
            settings |= settings_of(module, data, validation, trainer)
            _resume(module, shuffled, ordered, Keeper(Path(checkpoint), shuffled, settings), options)
    module.history = pd.DataFrame(counter.rows).rename_axis("epoch")
    module.trainer = None  # it holds on to the data
    return module.cpu().eval()


def _loader(kind: type[DataLoader], data: Dataset, **options: Any) -> DataLoader:
    """Return a loader; of `Frames`, or some of them, it cuts batches out of memory, without ``meta``."""
    frames, rows = underneath(data)
    if isinstance(frames, Frames):
        return kind(rows.tolist(), collate_fn=frames.batch, **options)
    return kind(data, **options)


def _resume(
    module: RawToLogits,
    shuffled: Shuffled,
    ordered: DataLoader | None,
    keeper: Keeper,
    options: dict[str, Any],
) -> None:
    """Train with checkpoints, from the last one if there is one."""
    kept, callbacks = keeper.last(), options["callbacks"]
    if kept is None or kept[1]["epoch"] + 1 < options["max_epochs"]:
        trainer = L.Trainer(**options | {"enable_checkpointing": True, "callbacks": [*callbacks, keeper]})
        path = None if kept is None else kept[0]
        trainer.fit(module, shuffled, ordered, ckpt_path=path, weights_only=True)
        # Processes that were spawned have kept the history for themselves.
        kept = None if callbacks[0].rows else keeper.last()
    if kept is not None:
        module.load_state_dict(kept[1]["state_dict"])
        for callback in callbacks:
            if callback.state_key in kept[1]["callbacks"]:
                callback.load_state_dict(kept[1]["callbacks"][callback.state_key])


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C through, and keep it working: Lightning makes it an exit and ignores all later ones."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
