"""Where a network runs: its device, and the precision that pays there."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer of `model`; the processor where it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def autocast(device: torch.device, *, enabled: bool | None = None) -> AbstractContextManager[None]:
    """Bfloat16 autocast on `device`; by default where its hardware computes in bfloat16, which about halves the time."""
    if enabled is None:
        enabled = pays_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def pays_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def use_fast_layout(model: nn.Module) -> None:
    """Channels-last memory for the convolutions of `model`, whose kernels are faster so; values do not change."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
