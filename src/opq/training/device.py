"""The device of a network, and the precision and memory layout that are fastest on it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer of `model`; the CPU if it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def autocast(device: torch.device, *, enabled: bool | None = None) -> AbstractContextManager[None]:
    """Context of bfloat16 autocast.

    Args:
        device: The device.
        enabled: Whether to use bfloat16; None for the result of `prefers_bfloat16`.
    """
    if enabled is None:
        enabled = prefers_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether `device` computes faster in bfloat16 than in float32.

    GPUs with native bfloat16 do, and so do CPUs with AMX, or with AVX512-BF16 but without AVX512-FP16. Intel CPUs with
    AVX512-FP16 are designed for AMX: if a virtual machine hides their AMX, bfloat16 takes 1.4 times as long as float32
    (docs/log.md).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(features.get("amx_bf16") or (features.get("avx512_bf16") and not features.get("avx512_fp16")))


def to_contiguous(model: nn.Module) -> None:
    """Undo `to_channels_last`, because savers and views need contiguous tensors; values do not change."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def to_channels_last(model: nn.Module) -> None:
    """Store the convolutions of `model` channels-last, because their kernels are faster then; values do not change."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
