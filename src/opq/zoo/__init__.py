"""Networks by name, and images from folders and .npz files."""

from opq.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise MissingExtraError("a network by name", "torch") from None
