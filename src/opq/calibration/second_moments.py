"""What a layer takes, as second moments over a sample of inputs and positions."""

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
    """Second moments of a layer's input columns x; those of an input are added up over positions, and averaged over inputs.

    Each group of a convolution has its own. All float64; n is inputs times kernel positions of a group.

    own         (groups, n, n) E[x x^T] behind the layers rounded so far
    cross       (groups, n, n) E[y x^T], y the same columns in the dense network
    own_mean    (groups, n) mean of x, over inputs and positions
    dense_mean  (groups, n) mean of y
    """

    own: Tensor
    cross: Tensor
    own_mean: Tensor
    dense_mean: Tensor


def moments_of(layer: Layer, dense: Tensor, own: Tensor, *, centred: bool, seed: int = 0) -> Moments:
    """The moments of a layer's inputs in both networks; about their means if `centred`, as suits a layer with a free bias."""
    generator = torch.Generator().manual_seed(seed)
    size = layer.weight[0].numel()
    wanted = max(_PER_COLUMN * size, _LEAST)
    sums: list[Tensor] = []
    count = positions = 0
    for start in range(0, len(own), _IMAGES_AT_ONCE):
        y = _columns(layer, dense[start : start + _IMAGES_AT_ONCE].float())
        x = _columns(layer, own[start : start + _IMAGES_AT_ONCE].float())
        images = len(own[start : start + _IMAGES_AT_ONCE])
        positions = x.shape[2] // images
        share = -(-wanted * images // len(own))
        if share < x.shape[2]:
            picked = torch.randint(0, x.shape[2], (share,), generator=generator).to(x.device)
            x, y = x[:, :, picked], y[:, :, picked]
        count += x.shape[2]
        parts = [torch.bmm(x, x.transpose(1, 2)), torch.bmm(y, x.transpose(1, 2)), x.sum(2), y.sum(2), y.square().sum((1, 2))]
        sums = [part.double() + (sums[at] if sums else 0.0) for at, part in enumerate(parts)]
    own_moment, cross, own_mean, dense_mean, power = (total / count for total in sums)
    if centred:
        own_moment = own_moment - own_mean[:, :, None] * own_mean[:, None, :]
        cross = cross - dense_mean[:, :, None] * own_mean[:, None, :]
    # Where the layers before have died away, what is left of them must not decide alone.
    floor = _LEAST_POWER * power / size
    lacking = (floor - own_moment.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=0.0)
    own_moment = own_moment + lacking[:, None, None] * torch.eye(own_moment.shape[1], dtype=own_moment.dtype)
    return Moments(own_moment * positions, cross * positions, own_mean, dense_mean)


def _columns(layer: Layer, taken: Tensor) -> Tensor:
    """What each output is a product with: (groups, n, inputs times positions)."""
    if isinstance(layer, nn.Linear):
        return taken.reshape(-1, taken.shape[-1]).T[None]
    padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
    unfolded = functional.unfold(taken, layer.kernel_size, layer.dilation, padding, layer.stride)
    columns = unfolded.transpose(0, 1).flatten(1)
    return columns.reshape(layer.groups, -1, columns.shape[1])
