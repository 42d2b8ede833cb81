"""One layer of a network, quantized against its outputs: target, codes, gain and shift.

With y the layer's input in the dense network and x its input behind the layers quantized so far:

    target  W' = argmin E |W y - W' x|^2 + ridge |W - W'|^2 = (W E[y x^T] + ridge W) (E[x x^T] + ridge)^-1
    codes   Q = steps * codes approximates W', by opq.calibration.gptq
    gain    g_j = E[(W y)_j (Q x)_j] / E[(Q x)_j^2], if a batch norm follows
    shift   the difference of the means of (W y)_j and g_j (Q x)_j, if a batch norm or a bias follows

A layer without a batch norm has one step, or with scales of its rows (`opq.rate_distortion.scales`) a step per row; then errors
over the factors of the scales count alike. A layer with a batch norm has a step per output channel at no cost: the batch norm
absorbs the steps and the gains, and the weight itself is a power of two times the codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from opq.batch_norm import BatchNormVectors
from opq.calibration.batch_norm_pairs import BatchNorm, Layer, statistics
from opq.calibration.gptq import compensated_error, damped, quantize_rows, steps_at
from opq.calibration.second_moments import Moments, second_moments
from opq.quantization.codebook import codebook_of
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.quantizer import dequantize
from opq.rate_distortion.scales import steps as steps_of_scales
from opq.rate_distortion.scales import steps_like

_RIDGE = 0.01
_LARGEST_GAIN = 4.0


@dataclass(frozen=True)
class ReconstructedLayer:
    """A layer that was quantized against its outputs.

    Args:
        step: Distance of neighbouring values of the weight, where scales are 0.
        codes: int32, shaped as the weight.
        dtype: Name of the weight's dtype.
        scales: float64 (channels,) factors of the new output, for the batch norm that follows; None if none follows.
        shift: float64 (channels,) summands after these factors, for the batch norm or else for the layer's bias; None if there
            is neither.
        rows: Scale of each row; None for none.
    """

    step: float
    codes: Tensor
    dtype: str
    scales: Tensor | None
    shift: Tensor | None
    rows: tuple[int, ...] | None = None

    def tensor(self) -> CompressedTensor:
        """The weight as a file stores it."""
        return CompressedTensor(self.codes.cpu().numpy(), codebook_of(self.step, self.rows, None), self.dtype)

    def apply(self, layer: Layer, norm: BatchNorm | None) -> None:
        """Write the new values into a layer and its batch norm, in place.

        Args:
            layer: The layer.
            norm: The batch norm that is the only consumer of its output; None if there is none.
        """
        steps = steps_like(self.step, self.rows, None, tuple(self.codes.shape))
        layer.weight.copy_(dequantize(self.codes, steps, layer.weight.dtype))
        if norm is not None and self.scales is not None and self.shift is not None:
            _absorb(norm, self.scales, self.shift if layer.bias is None else self.shift + layer.bias.double())
            if layer.bias is not None:
                layer.bias.zero_()
        elif layer.bias is not None and self.shift is not None:
            layer.bias.add_(self.shift.to(layer.bias))


def reconstruct_layer(
    layer: Layer,
    has_batch_norm: bool,
    dense_input: Tensor,
    quantized_input: Tensor,
    output_sensitivity: Tensor,
    lmbda: float,
    rows: tuple[int, ...] | None = None,
) -> ReconstructedLayer:
    """Quantize the weight of a layer so that its outputs stay close to those of the dense network.

    Args:
        layer: The dense layer; it is not changed.
        has_batch_norm: Whether a batch norm is the only consumer of its output.
        dense_input: (samples, ...) the layer's input in the dense network.
        quantized_input: Its input behind the layers quantized so far, shaped as `dense_input`.
        output_sensitivity: float64 (channels,) cost of a unit of squared error of each output channel, > 0.
        lmbda: Lagrange multiplier: error per bit, in the unit of `output_sensitivity`, > 0.
        rows: Scale of each row, which a layer without a batch norm keeps; None for none.

    Returns:
        The quantized layer.
    """
    has_free_bias = has_batch_norm or layer.bias is not None
    moments = second_moments(layer, dense_input, quantized_input, centred=has_free_bias)
    count, groups = len(layer.weight), len(moments.quantized)
    original = layer.weight.detach().double().reshape(groups, count // groups, -1)
    power = compensated_error(moments.quantized).repeat_interleave(count // groups)
    rows = None if has_batch_norm else rows
    factors = torch.ones(count, dtype=torch.float64) if rows is None else _row_steps(1.0, rows)
    if not has_batch_norm:
        output_sensitivity = (output_sensitivity * factors**2).mean() / factors**2
        power = power.mean().expand(count)
    steps = steps_at(lmbda, output_sensitivity, power)
    step = float((steps[0] / factors[0]).float())
    if rows is not None:
        steps = _row_steps(step, rows)
    codes = quantize_rows(_target(original, moments).reshape(count, -1), moments.quantized, output_sensitivity, steps, lmbda)
    values = (steps[:, None] * codes).reshape(original.shape)
    if has_batch_norm:
        gains = _gains(original, values, moments)
        scales = steps * gains
        step = 2.0 ** round(math.log2(float(scales.median())))
        scales = scales / step
    else:
        gains, scales = torch.ones(count, dtype=torch.float64), None
    shift = _shift(original, values, gains, moments) if has_free_bias else None
    dtype = str(layer.weight.dtype).removeprefix("torch.")
    return ReconstructedLayer(step, codes.reshape(layer.weight.shape), dtype, scales, shift, rows)


def _row_steps(step: float, rows: tuple[int, ...]) -> Tensor:
    """(rows,) float64 steps of rows with these scales."""
    return torch.from_numpy(steps_of_scales(step, rows, None)[:, 0]).double()


def _target(original: Tensor, moments: Moments) -> Tensor:
    """(groups, rows, n) the weight that reproduces the dense outputs from the quantized inputs, by ridge regression."""
    ridge = damped(moments.quantized, _RIDGE) - moments.quantized
    aim = torch.bmm(original, moments.cross + ridge)
    target: Tensor = torch.linalg.solve(moments.quantized + ridge, aim, left=False)
    return target


def _gains(original: Tensor, values: Tensor, moments: Moments) -> Tensor:
    """Regression slopes (rows,) of dense outputs on quantized ones."""
    cross = (torch.bmm(original, moments.cross) * values).sum(2).flatten()
    power = (torch.bmm(values, moments.quantized) * values).sum(2).flatten()
    gains = torch.where(power > 0.0, cross / power.clamp(min=1e-300), 1.0)
    return gains.clamp(2.0**-8, _LARGEST_GAIN)


def _shift(original: Tensor, values: Tensor, gains: Tensor, moments: Moments) -> Tensor:
    """(rows,) the difference of the mean outputs."""
    wanted = torch.bmm(original, moments.dense_mean[:, :, None]).flatten()
    return wanted - gains * torch.bmm(values, moments.quantized_mean[:, :, None]).flatten()


def _absorb(norm: BatchNorm, scales: Tensor, shift: Tensor) -> None:
    """Let `norm` compute what it computed, from its old input = scales * input + shift, with mean 0 and variance 1.

    Its weight and bias are rounded to the eight leading bits of bfloat16: an error of 2^-9, far below that of the codes, at
    half the bytes.
    """
    mean, variance = statistics(norm)
    before = BatchNormVectors(norm.weight.double(), norm.bias.double(), mean.double(), variance.double(), norm.eps)
    after = before.absorb(scales, shift).with_statistics(torch.zeros_like(before.mean), torch.ones_like(before.mean))
    norm.weight.copy_(after.weight.bfloat16())
    norm.bias.copy_(after.bias.bfloat16())
    mean.zero_()
    variance.fill_(1.0)
