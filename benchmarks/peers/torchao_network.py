"""A network whose weights torchao quantizes to integers of few bits, saved with torch.save, for benchmarks/peers.py.

    PEERS/bin/python benchmarks/peers/torchao_network.py NETWORK CHECKPOINT.safetensors FOLDER

A line is [bits]: `IntxWeightOnlyConfig`, torchao's only configuration that quantizes convolutions too. It has a scale and a
zero point for every output and kernel position. For depthwise convolutions that would be one per weight, so these are not
quantized. Its alternative for scales, HQQ, refuses convolutions. The state dict is the one that torch.load reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from modules import Reopened, answer_settings
from torch import Tensor, nn
from torchao.quantization import IntxWeightOnlyConfig, quantize_


def compress(
    dense: Callable[[], nn.Module], calibration: Tensor, setting: tuple[int], folder: Path
) -> tuple[Sequence[Path], Reopened]:
    """Quantize and save."""
    model, path = dense(), folder / "network.pt"
    config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{setting[0]}"))
    quantize_(model, config, filter_fn=lambda module, name: is_quantized(module))
    torch.save(model.state_dict(), path)
    reopened = dense()
    reopened.load_state_dict(torch.load(path, weights_only=True), assign=True)
    return [path], reopened


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution that is not depthwise."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


if __name__ == "__main__":
    raise SystemExit(answer_settings(compress))
