"""Where tensors come from."""

from opq.sources.opening import as_state
from opq.sources.state import State

__all__ = ["State", "as_state"]
