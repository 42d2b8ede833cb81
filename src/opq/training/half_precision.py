"""Networks of half precision train in float32, because small updates would be rounded away, and get their dtypes back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def half_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """{name in the state dict: dtype} of the tensors in half precision."""
    return {name: t.dtype for name, t in model.state_dict().items() if isinstance(t, Tensor) and t.dtype in HALF}


def restore_dtypes(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Convert the named parameters and buffers of a plain network, in place."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
