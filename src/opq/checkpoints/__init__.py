"""Where tensors come from."""

from opq.checkpoints.open import as_state
from opq.checkpoints.state import State

__all__ = ["State", "as_state"]
