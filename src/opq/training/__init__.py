"""Training with the compression decided: steps stay, masks too once they are closed, and weights move."""

from opq.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise MissingExtraError("training", "torch") from None
