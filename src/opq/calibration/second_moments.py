"""Second moments of a layer's inputs, over a sample of inputs and kernel positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from opq.calibration.batch_norm_pairs import Layer

_PER_COLUMN, _LEAST = 40, 4096
_IMAGES_AT_ONCE = 16
_LEAST_POWER = 1e-3


@dataclass(frozen=True)
class Moments:
    """Second moments of the input columns of a layer, float64.

    An output of the layer is the product of a weight row with a column of n inputs: for a convolution n is input channels per
    group times kernel positions, and each group has separate moments. x is a column in the quantized network, y the same
    column in the dense one. Second moments are sums over positions and means over inputs.

    Args:
        quantized: (groups, n, n) E[x x^T].
        cross: (groups, n, n) E[y x^T].
        quantized_mean: (groups, n) mean of x over inputs and positions.
        dense_mean: (groups, n) mean of y over inputs and positions.
    """

    quantized: Tensor
    cross: Tensor
    quantized_mean: Tensor
    dense_mean: Tensor


def second_moments(layer: Layer, dense: Tensor, quantized: Tensor, *, centred: bool, seed: int = 0) -> Moments:
    """Measure the second moments of a layer's inputs in the dense and in the quantized network.

    At most about max(40 n, 4096) columns are used, at positions chosen at random.

    Args:
        layer: The layer.
        dense: (samples, ...) its inputs in the dense network.
        quantized: The same inputs in the network whose earlier layers are quantized, shaped as `dense`.
        centred: Whether moments are taken about the means, as suits a layer whose output has a free bias.
        seed: Of the sample of positions.

    Returns:
        The moments. If the quantized inputs have less than a thousandth of the dense inputs' power, a multiple of the identity
        is added.
    """
    generator = torch.Generator().manual_seed(seed)
    size = layer.weight[0].numel()
    num_columns = max(_PER_COLUMN * size, _LEAST)
    sums: list[Tensor] = []
    count = positions = 0
    for start in range(0, len(quantized), _IMAGES_AT_ONCE):
        y = _columns(layer, dense[start : start + _IMAGES_AT_ONCE].float())
        x = _columns(layer, quantized[start : start + _IMAGES_AT_ONCE].float())
        images = len(quantized[start : start + _IMAGES_AT_ONCE])
        positions = x.shape[2] // images
        share = -(-num_columns * images // len(quantized))
        if share < x.shape[2]:
            picked = torch.randint(0, x.shape[2], (share,), generator=generator).to(x.device)
            x, y = x[:, :, picked], y[:, :, picked]
        count += x.shape[2]
        parts = [torch.bmm(x, x.transpose(1, 2)), torch.bmm(y, x.transpose(1, 2)), x.sum(2), y.sum(2), y.square().sum((1, 2))]
        sums = [part.double() + (sums[at] if sums else 0.0) for at, part in enumerate(parts)]
    moment, cross, quantized_mean, dense_mean, power = (total / count for total in sums)
    if centred:
        moment = moment - quantized_mean[:, :, None] * quantized_mean[:, None, :]
        cross = cross - dense_mean[:, :, None] * quantized_mean[:, None, :]
    # If quantization has emptied the layers before, the little that is left of their outputs must not decide alone.
    floor = _LEAST_POWER * power / size
    lacking = (floor - moment.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=0.0)
    moment = moment + lacking[:, None, None] * torch.eye(moment.shape[1], dtype=moment.dtype)
    return Moments(moment * positions, cross * positions, quantized_mean, dense_mean)


def _columns(layer: Layer, inputs: Tensor) -> Tensor:
    """The columns that weight rows are multiplied with: (groups, n, samples times positions)."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1]).T[None]
    padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
    unfolded = functional.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    columns = unfolded.transpose(0, 1).flatten(1)
    return columns.reshape(layer.groups, -1, columns.shape[1])
