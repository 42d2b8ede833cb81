"""BudgetCallback for Lightning: the codes of a prepared network stay within its byte budget while a Trainer fits it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from opq.errors import MissingExtraError, TrainingError
from opq.training.budget.scheduler import BudgetScheduler

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    raise MissingExtraError("opq.callbacks.lightning", "lightning") from None

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from opq.training.prepared_model import PreparedModel

__all__ = ["BudgetCallback"]


class BudgetCallback(Callback):
    """Keeps the byte budget during `Trainer.fit`, as `opq.finetune` does; see `opq.BudgetScheduler`.

        prepared = opq.prepare(module.network, ratio=20)
        Trainer(max_epochs=10, callbacks=[BudgetCallback(prepared)]).fit(module, loader)
        prepared.export(loader).save("model.opq")

    Checkpoints hold its state, so that `fit(ckpt_path=...)` resumes it.

    Args:
        prepared: What `opq.prepare` returned, for the fitted module or a module inside it.
        mask_update_share: As in `opq.BudgetScheduler`.
    """

    def __init__(self, prepared: PreparedModel, mask_update_share: float | None = None) -> None:
        self._prepared, self._mask_update_share = prepared, mask_update_share
        self._scheduler: BudgetScheduler | None = None
        self._state: dict[str, Any] = {}
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or continue from a checkpoint.

        Raises:
            TrainingError: The number of steps is not limited.
        """
        steps = trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise TrainingError("the Trainer must have a number of steps, for the budget; give it max_steps, or max_epochs")
        self._scheduler = BudgetScheduler(self._prepared, trainer.optimizers[0], int(steps), self._mask_update_share)
        if self._state:
            self._scheduler.load_state_dict(self._state)
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the budget after each step of the optimizer; batches whose gradients are accumulated make none."""
        if self._scheduler is not None and trainer.global_step != self._step:
            self._step = trainer.global_step
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {} if self._scheduler is None else self._scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint when training starts."""
        self._state = state_dict
