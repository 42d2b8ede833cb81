"""GPTQ (E. Frantar et al., 2022), a page of our own: integers in groups of 128, with errors moved to the columns behind.

Linear layers are quantized with the second moments of their inputs in the dense network, damped by 1% of their mean, and
columns in order of their power ("act-order"). All other weights, such as embeddings, are rounded to nearest in the same groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from zoo_formats import Arrays, Integers, WeightFormat, pack, unpack

from opq.calibration.inputs import Batch
from opq.calibration.outputs import outputs_of
from opq.codec.code_stream import decode_codes, encode_codes

GROUP = 128
DAMPING = 0.01


@torch.no_grad()
def input_moments(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """{name of a linear layer's weight: float64 (n, n) sum of the products of its inputs}."""
    found: dict[str, Tensor] = {}

    def note(name: str, inputs: Tensor) -> None:
        rows = inputs.flatten(0, -2)
        found[name] = found.get(name, 0.0) + (rows.T @ rows).double()

    handles = [
        module.register_forward_pre_hook(lambda _, args, name=f"{name}.weight": note(name, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    for batch in batches:
        outputs_of(model, batch)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def compensated(weight: Tensor, moments: Tensor, bits: int) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    """Codes (o, n) and scales (o, groups) of a weight (o, n). A group's scale is that of its weights when they are reached.

    Columns are visited in order of their power, so all scales are those of the dense weight.
    """
    rows, size, largest = weight.float(), weight.shape[1], 2 ** (bits - 1) - 1
    scales = torch.stack([group.abs().amax(1) for group in torch.split(rows, GROUP, 1)], 1) / largest
    scales = scales.half().float()
    spread = scales.repeat_interleave(GROUP, 1)[:, :size]
    spread = torch.where(spread > 0.0, spread, 1.0)
    order = torch.argsort(moments.diagonal(), descending=True)
    damped = moments[order][:, order]
    damped = damped + DAMPING * damped.diagonal().mean().clamp(min=1e-12) * torch.eye(size, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    upper = (upper / upper.diagonal()[:, None]).float()
    left, steps = rows.T[order].contiguous(), spread.T[order].contiguous()
    codes = torch.empty_like(left)
    for start in range(0, size, 64):
        end = min(start + 64, size)
        errors = torch.empty_like(left[start:end])
        for column in range(start, end):
            codes[column] = torch.round(left[column] / steps[column]).clamp(-largest, largest)
            errors[column - start] = left[column] - codes[column] * steps[column]
            left[column + 1 : end].addr_(upper[column, column + 1 : end], errors[column - start], alpha=-1.0)
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1.0)
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T.to(torch.int32).contiguous().numpy(), scales.numpy().astype(np.float16)


@dataclass(frozen=True)
class Compensated(WeightFormat):
    """GPTQ's codes of linear layers.

    Args:
        bits: Bits of an integer.
        coded: Whether codes are entropy coded with opq's coder instead of packed.
        moments: {weight: the second moments of its inputs}.
        names: {address of a weight's data: its name}.
    """

    bits: int
    coded: bool
    moments: Mapping[str, Tensor]
    names: Mapping[int, str]

    @property
    def preset(self) -> int:
        """Xz gains nothing on coded bytes."""
        return 0 if self.coded else 6

    def store(self, weight: NDArray[np.float32]) -> Arrays:
        """As `WeightFormat`."""
        name = self.names[weight.ctypes.data]
        if name in self.moments:
            codes, scales = compensated(torch.from_numpy(weight), self.moments[name], self.bits)
        else:
            stored = self._plain.store(weight)
            codes, scales = self._unpacked(stored["codes"], weight.shape), stored["scales"]
        if self.coded:
            return {"codes": np.frombuffer(encode_codes(codes.reshape(weight.shape)), np.uint8), "scales": scales}
        return {"codes": pack(codes + self._largest, self.bits), "scales": scales}

    def read(self, stored: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """As `WeightFormat`."""
        if not self.coded:
            return self._plain.read(stored, shape)
        codes = decode_codes(stored["codes"].tobytes(), shape).reshape(shape[0], -1)
        spread = stored["scales"].astype(np.float32).repeat(GROUP, axis=1)[:, : codes.shape[1]]
        return (codes * spread).reshape(shape).astype(np.float32)

    @property
    def _plain(self) -> Integers:
        return Integers(self.bits, GROUP)

    @property
    def _largest(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def _unpacked(self, packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int32]:
        return (unpack(packed, self.bits, math.prod(shape)).astype(np.int32) - self._largest).reshape(shape[0], -1)
