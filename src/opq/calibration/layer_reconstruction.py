"""One layer of a network, rounded: its codes, its place on a grid, and what its batch-norm makes up for.

With y the layer's input in the dense network and x behind the layers rounded so far:

    target  W' = argmin E |W y - W' x|^2 + ridge |W - W'|^2 = (W E[y x^T] + ridge W) (E[x x^T] + ridge)^-1
    codes   of W', by opq.calibration.gptq
    gain    g_j = E[(W y)_j (Q x)_j] / E[(Q x)_j^2], where a batch-norm follows, Q = steps * codes
    shift   what the means of (W y)_j and g_j (Q x)_j differ by, where a batch-norm or a bias follows

A layer without a batch-norm has one step. One with a batch-norm has a step for every output channel, at no cost: steps and
gains go into the batch-norm, and the weight itself is a power of two times the codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from opq.batch_norm import BatchNormVectors
from opq.calibration.batch_norm_pairs import BatchNorm, Layer, statistics
from opq.calibration.gptq import compensated_error, damped, round_rows, steps_at
from opq.calibration.second_moments import Moments, moments_of
from opq.quantization.codebook import UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor

_RIDGE = 0.01
_LARGEST_GAIN = 4.0


@dataclass(frozen=True)
class ReconstructedLayer:
    """A layer's outcome.

    Args:
        step: Distance of neighbouring values of the weight.
        codes: int32, shaped as the weight.
        dtype: Name of the weight's dtype.
        scales: (channels,) what the batch norm that follows multiplies the new output by; None without one.
        shift: (channels,) what it, or else the layer's bias, then adds; None if there is neither.
    """

    step: float
    codes: Tensor
    dtype: str
    scales: Tensor | None
    shift: Tensor | None

    def tensor(self) -> CompressedTensor:
        """The weight for a file."""
        return CompressedTensor(self.codes.cpu().numpy(), UniformCodebook(self.step), self.dtype)

    def apply(self, layer: Layer, norm: BatchNorm | None) -> None:
        """Give `layer`, and the batch norm that alone takes its output, their new values."""
        layer.weight.copy_(self.step * self.codes)
        if norm is not None and self.scales is not None and self.shift is not None:
            _absorb(norm, self.scales, self.shift if layer.bias is None else self.shift + layer.bias.double())
            if layer.bias is not None:
                layer.bias.zero_()
        elif layer.bias is not None and self.shift is not None:
            layer.bias.add_(self.shift.to(layer.bias))


def reconstruct_layer(
    layer: Layer, normed: bool, dense: Tensor, own: Tensor, output_sensitivity: Tensor, lmbda: float
) -> ReconstructedLayer:
    """Round the weight of a dense `layer`.

    normed      whether a batch-norm alone takes its output
    dense, own  the layer's input in the dense network and behind the layers rounded so far
    importance  (channels,) what a unit of squared output error costs
    price       what a bit costs, in the same unit
    """
    shifted = normed or layer.bias is not None
    moments = moments_of(layer, dense, own, centred=shifted)
    rows, groups = len(layer.weight), len(moments.own)
    original = layer.weight.detach().double().reshape(groups, rows // groups, -1)
    power = compensated_error(moments.own).repeat_interleave(rows // groups)
    if not normed:
        output_sensitivity, power = output_sensitivity.mean().expand(rows), power.mean().expand(rows)
    steps = steps_at(lmbda, output_sensitivity, power)
    codes = round_rows(_target(original, moments).reshape(rows, -1), moments.own, output_sensitivity, steps, lmbda)
    values = (steps[:, None] * codes).reshape(original.shape)
    if normed:
        gains = _gains(original, values, moments)
        scales = steps * gains
        step = 2.0 ** round(math.log2(float(scales.median())))
        scales = scales / step
    else:
        gains, scales, step = torch.ones(rows, dtype=torch.float64), None, float(steps[0].float())
    shift = _shift(original, values, gains, moments) if shifted else None
    dtype = str(layer.weight.dtype).removeprefix("torch.")
    return ReconstructedLayer(step, codes.reshape(layer.weight.shape), dtype, scales, shift)


def _target(original: Tensor, moments: Moments) -> Tensor:
    ridge = damped(moments.own, _RIDGE) - moments.own
    aim = torch.bmm(original, moments.cross + ridge)
    target: Tensor = torch.linalg.solve(moments.own + ridge, aim, left=False)
    return target


def _gains(original: Tensor, values: Tensor, moments: Moments) -> Tensor:
    together = (torch.bmm(original, moments.cross) * values).sum(2).flatten()
    alone = (torch.bmm(values, moments.own) * values).sum(2).flatten()
    gains = torch.where(alone > 0.0, together / alone.clamp(min=1e-300), 1.0)
    return gains.clamp(2.0**-8, _LARGEST_GAIN)


def _shift(original: Tensor, values: Tensor, gains: Tensor, moments: Moments) -> Tensor:
    wanted = torch.bmm(original, moments.dense_mean[:, :, None]).flatten()
    return wanted - gains * torch.bmm(values, moments.own_mean[:, :, None]).flatten()


def _absorb(norm: BatchNorm, scales: Tensor, shift: Tensor) -> None:
    """Make `norm` take scales * input + shift in place of its input; its statistics become mean 0 and variance 1.

    Its weight and bias keep eight leading bits, as bfloat16 does: an error of 2^-9, far under that of the codes, at half the
    bytes.
    """
    mean, variance = statistics(norm)
    before = BatchNormVectors(norm.weight.double(), norm.bias.double(), mean.double(), variance.double(), norm.eps)
    after = before.absorb(scales, shift).with_statistics(torch.zeros_like(before.mean), torch.ones_like(before.mean))
    norm.weight.copy_(after.weight.bfloat16())
    norm.bias.copy_(after.bias.bfloat16())
    mean.zero_()
    variance.fill_(1.0)
