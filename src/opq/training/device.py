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
    """Bfloat16 autocast on `device`; by default where that is faster than float32."""
    if enabled is None:
        enabled = prefers_bfloat16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether `device` computes faster in bfloat16 than in float32.

    A graphics processor with the instructions does, and so does a processor with AMX, or with AVX512-BF16 where that is all it
    has. Intel's with AVX512-FP16 too are made for AMX: where a virtual machine hides that from them, bfloat16 takes 1.4 times
    as long as float32 (docs/log.md).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(found.get("amx_bf16") or (found.get("avx512_bf16") and not found.get("avx512_fp16")))


def to_contiguous(model: nn.Module) -> None:
    """Contiguous memory again for what `use_fast_layout` laid otherwise, as savers and views want it."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def to_channels_last(model: nn.Module) -> None:
    """Channels-last memory for the convolutions of `model`, whose kernels are faster so; values do not change."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
