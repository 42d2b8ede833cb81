"""Read the tensors of a checkpoint from files, folders, state dicts and modules."""

from opq.checkpoints.open import as_state
from opq.checkpoints.state import State

__all__ = ["State", "as_state"]
