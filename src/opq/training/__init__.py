"""Quantization-aware finetuning: steps are fixed, masks are fixed after their update epochs, and weights train."""

from opq.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise MissingExtraError("training", "torch") from None
