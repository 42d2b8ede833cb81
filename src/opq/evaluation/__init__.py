"""What a network does on data: accuracy, and the smallest file within a drop of it."""

from opq.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise MissingExtraError("evaluation", "torch") from None
