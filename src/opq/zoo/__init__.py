"""Other people's networks and data."""

from opq.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise MissingExtraError("naming a network", "torch") from None
