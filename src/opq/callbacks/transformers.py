"""BudgetCallback for Hugging Face Transformers: the codes of a prepared network stay within its byte budget while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from opq.errors import MissingExtraError, TrainingError
from opq.training.budget.scheduler import BudgetScheduler

try:
    from transformers import TrainerCallback
except ImportError:
    raise MissingExtraError("opq.callbacks.transformers", "transformers") from None

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from opq.training.prepared_model import PreparedModel

__all__ = ["BudgetCallback"]

_KEY = "opq.callbacks.transformers.BudgetCallback"
"""The name of the state in checkpoints."""


class BudgetCallback(TrainerCallback):
    """Keeps the byte budget during `Trainer.train`, as `opq.finetune` does; see `opq.BudgetScheduler`.

        prepared = opq.prepare(model, ratio=20)
        Trainer(model, arguments, train_dataset=data, callbacks=[BudgetCallback(prepared)]).train()
        prepared.export().save("model.opq")

    Checkpoints hold its state, so that `train(resume_from_checkpoint=...)` resumes it.

    Args:
        prepared: What `opq.prepare` returned, for the trained model or a module inside it.
        mask_update_share: As in `opq.BudgetScheduler`.
    """

    def __init__(self, prepared: PreparedModel, mask_update_share: float | None = None) -> None:
        self._prepared, self._mask_update_share = prepared, mask_update_share
        self._scheduler: BudgetScheduler | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin, or continue from a checkpoint.

        Raises:
            TrainingError: The checkpoint was written without this callback.
        """
        self._scheduler = BudgetScheduler(self._prepared, kwargs["optimizer"], state.max_steps, self._mask_update_share)
        if state.global_step:
            states = _states(state)
            if _KEY not in states:
                raise TrainingError("the checkpoint has no state of the byte budget; resume without BudgetCallback")
            self._scheduler.load_state_dict(states[_KEY])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the budget after a step of the optimizer."""
        if self._scheduler is not None:
            self._scheduler.step()
        self._write_state(state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state into a checkpoint that is due."""
        self._write_state(state, control)

    def _write_state(self, state: TrainerState, control: TrainerControl) -> None:
        if self._scheduler is not None and control.should_save:
            _states(state)[_KEY] = self._scheduler.state_dict()


def _states(state: TrainerState) -> dict[str, Any]:
    """The states of callbacks in a checkpoint, by name."""
    return cast(dict[str, Any], state.stateful_callbacks)
