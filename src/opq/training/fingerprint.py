"""Digests of networks, which identify the arguments of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opq.training.attach import prepared_weights


def fingerprint(model: nn.Module) -> str:
    """Digest of a network: of all its tensors, or of the steps alone if it is prepared, because training changes its values.

    Args:
        model: The network.

    Returns:
        "sha256 " and 64 hexadecimal digits.
    """
    weights = prepared_weights(model)
    return _digest({weight.names[0]: weight.codebook.steps for weight in weights} if weights else model.state_dict())


def _digest(tensors: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):  # extra state of a module may be any object
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256 {digest.hexdigest()}"
