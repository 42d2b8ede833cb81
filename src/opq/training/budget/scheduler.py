"""BudgetScheduler: keeps the codes of a prepared network within its byte budget in any training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

from opq.errors import ConfigError, PlanError, TargetError
from opq.progress import logger
from opq.training.budget.controller import BudgetController
from opq.training.prepared_model import PreparedModel
from opq.training.training_plan import why_masks_are_fixed

MASK_UPDATE_SHARE = 2 / 3
"""Share of a training in which masks are recomputed by default, if they can be."""


class BudgetScheduler:
    """What `opq.finetune` does for the byte budget while weights train, for a loop of your own.

    It recomputes masks in the first part of the training, if the plan allows it, and then pulls latent values towards zero when
    their codes exceed the budget (`opq.training.budget.controller`). Call `step` after each step of the optimizer, as with a
    scheduler of learning rates. In several processes, make it in each one. More calls than `steps` are a warning, because masks
    were then updated for too short a part of the training.

    Args:
        prepared: What `opq.prepare` returned, on the device to train on.
        optimizer: The optimizer, whose current learning rate scales the pull.
        steps: Steps of the optimizer in the whole training, >= 1.
        mask_update_share: Share of the steps, 0..1, from the first one on, in which masks are recomputed. None: two thirds if
            `opq.prepare` made the plan, else 0.

    Raises:
        ConfigError: `steps` or `mask_update_share` is out of range.
        PlanError: There is no byte budget, or `mask_update_share` must be 0.
        TargetError: The budget leaves no bytes for codes.
    """

    def __init__(
        self,
        prepared: PreparedModel,
        optimizer: torch.optim.Optimizer,
        steps: int,
        mask_update_share: float | None = None,
    ) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ConfigError(f"steps must be an integer >= 1, got {steps!r}")
        if mask_update_share is not None and not 0.0 <= mask_update_share <= 1.0:
            raise ConfigError(f"mask_update_share must lie in [0, 1], got {mask_update_share!r}")
        fixed = "the masks of a file or a calibration are kept" if prepared.plan is None else why_masks_are_fixed(prepared.plan)
        if mask_update_share and fixed:
            raise PlanError(f"mask_update_share must be 0, because {fixed}")
        if mask_update_share is None:
            mask_update_share = 0.0 if fixed else MASK_UPDATE_SHARE
        self._optimizer, self._steps = optimizer, steps
        self._finished, self._highest_rate, self._has_warned = 0, 0.0, False
        self._controller = BudgetController(prepared.model, code_budget(prepared), mask_update_share)

    def step(self) -> None:
        """Keep the budget after a step of the optimizer.

        Raises:
            TrainingError: A latent value became NaN or infinite.
        """
        if self._finished >= self._steps and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "BudgetScheduler: this is step %d of a training of %d; give steps= all steps of the optimizer in all epochs",
                self._finished + 1,
                self._steps,
            )
        rate = float(self._optimizer.param_groups[0]["lr"])
        self._highest_rate = max(self._highest_rate, rate)
        self._controller(self._finished, self._steps, rate / self._highest_rate if self._highest_rate else 0.0)
        self._finished += 1

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, as JSON values."""
        return {"finished": self._finished, "highest_rate": self._highest_rate, **self._controller.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned, after the network has the weights of the same checkpoint."""
        self._finished, self._highest_rate = state["finished"], state["highest_rate"]
        self._controller.restore(state)


def code_budget(prepared: PreparedModel) -> int:
    """Bytes of the budget that remain for the codes of a prepared network, equal in all processes.

    Raises:
        PlanError: There is no byte budget.
        TargetError: No bytes remain.
    """
    if prepared.budget is None:
        raise PlanError("the network was prepared without a byte target; give opq.prepare a budget")
    available = prepared.budget - prepared.encode().file_bytes + prepared.code_bytes()
    if distributed.is_available() and distributed.is_initialized():  # batch-norm statistics may differ, and so may their bytes
        shared = [available]
        distributed.broadcast_object_list(shared, src=0)
        (available,) = shared
    if available <= 0:
        raise TargetError(
            f"budget (={prepared.budget:,} bytes) must be larger, because everything except the codes takes "
            f"{prepared.budget - available:,}"
        )
    return available
