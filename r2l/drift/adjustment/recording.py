"""An ISP's parameters, epoch by epoch, while it is trained."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from r2l.isp import ParametrizedISP
from r2l.training import RawToLogits

State = dict[str, Tensor]


class Recorder(Callback):
    """Keeps an ISP's parameters of each epoch, the initial ones first, and keeps it a camera.

    After each step the parameters are brought back into the ISP's physical bounds (`project_`), so that a
    learned pipeline stays one that could be built: no gamma below 0.2, no level above white, filters that
    leave a flat field as it is.
    """

    def __init__(self) -> None:
        self.states: list[State] = []

    def _keep(self, module: RawToLogits) -> None:
        state = module.processor.state_dict()
        self.states.append({name: value.detach().cpu().clone() for name, value in state.items()})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the initial parameters."""
        self._keep(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_rest: object
    ) -> None:
        """Bring a learned ISP back into its bounds."""
        processor = pl_module.processor
        if isinstance(processor, ParametrizedISP) and any(
            p.requires_grad for p in processor.parameters()
        ):
            processor.project_()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the parameters of an epoch."""
        self._keep(pl_module)
