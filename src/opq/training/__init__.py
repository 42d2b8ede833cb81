"""Training with the compression fixed: masks and steps stay, only weights move."""

from opq.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise MissingExtraError("training", "torch") from None
