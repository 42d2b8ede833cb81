"""A weight that is always in its codebook: the parametrization that `prepare` attaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from opq.errors import WeightError
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.quantizer import dequantize, largest_codes, quantize, signed_levels, uncut_levels
from opq.rate_distortion.plan import LayerPlan


class Codebook(nn.Module):
    """The mask and the step of one weight; called with its latent values, gives the values they round to.

    Values are bit-equal to `opq.fake_quantize` under the plan, but that the mask is fixed: a kept weight takes a code of at
    least 1 in magnitude however small it becomes, a pruned one is exactly zero however large. The gradient passes straight
    through to kept weights and is zero for pruned ones (Y. Bengio, N. Leonard, A. Courville, arXiv 1308.3432, 2013).
    While it has a border, no mask is fixed yet: latent values of larger magnitude are kept, and the gradient passes to all.

    mask    bool, shaped as the weight: True = kept; of no effect beside a border
    step    float32 (): distance of neighbouring codebook values
    offset  (): rounding offset, in the dtype that rounding works in
    most    largest code, one for all channels or one each, shaped to broadcast with the weight
    """

    mask: Tensor
    step: Tensor
    rounding_offset: Tensor
    most: Tensor

    def __init__(self, mask: Tensor, step: float, offset: float, most: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("step", torch.tensor(step, dtype=torch.float32, device=mask.device))
        self.register_buffer("rounding_offset", torch.tensor(offset, dtype=most.dtype, device=mask.device))
        self.register_buffer("most", most)
        self.border: float | None = None
        self._settled: Tensor | None = None

    @classmethod
    def from_plan(cls, name: str, weight: Tensor, plan: LayerPlan) -> Self:
        """The codebook of `weight`, with the mask that `plan` gives it now.

        Where the plan is shaped, `settle` makes the weight what it is rounded to: rounded by itself it would be something else.
        """
        try:
            codes = cast(Tensor, quantize(weight, plan))
            found = cls(codes != 0, plan.step, plan.rounding_offset, cast(Tensor, largest_codes(weight, plan)))
            found._settled = dequantize(codes, plan.step, weight.dtype) if plan.shaped else None
            return found
        except WeightError as error:
            raise WeightError(name, weight.shape, error.problem) from None

    @classmethod
    def from_file(cls, weight: Tensor, tensor: CompressedTensor) -> Self:
        """The codebook of a weight of a file with a step, whose values `weight` already has: its zeros are the mask."""
        plan = fixed_plan(tensor.shape, cast(float, tensor.step))
        mask = torch.from_numpy(tensor.codes != 0).to(weight.device)
        return cls(mask, plan.step, plan.rounding_offset, cast(Tensor, largest_codes(weight, plan)))

    def settle(self, weight: Tensor) -> None:
        """Give `weight` the values that training begins at, where they are others than its own."""
        if self._settled is not None:
            weight.copy_(self._settled)
            self._settled = None

    def forward(self, latent: Tensor) -> Tensor:
        """The values that latent ones round to, in their dtype."""
        return cast(Tensor, _StraightThrough.apply(latent, self))  # type: ignore[no-untyped-call]

    def levels(self, latent: Tensor) -> Tensor:
        """Signed codes as floats, 0 where pruned, NaN where latent values are."""
        work = latent if latent.dtype == torch.float64 else latent.float()
        step, offset, most = (number.to(work.dtype) for number in (self.step, self.rounding_offset, self.most))
        kept = self.mask if self.border is None else ~(work.abs() <= self.border)  # NaN is kept, so that it is seen
        return cast(Tensor, signed_levels(work, uncut_levels(work, step, offset), most, kept))

    def codes(self, latent: Tensor) -> Tensor:
        """Codes, int32."""
        return self.levels(latent.detach()).to(torch.int32)

    def close(self, latent: Tensor) -> None:
        """Keep from now on what the border leaves now."""
        self.mask.copy_(self.codes(latent) != 0)
        self.border = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A network cast to a narrow dtype keeps the very step of the plan.
        exact = {name: buffer for name, buffer in self.named_buffers(recurse=False) if name != "mask"}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(self.mask.device))
        return self


def fixed_plan(shape: tuple[int, ...], step: float) -> LayerPlan:
    """The plan under which weights that are in the codebook of this step already get their own codes."""
    return LayerPlan(shape, step, threshold=0.0, rounding_offset=0.5, sparsity=0.0, bits=0.0, laplace_bits=0.0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, codebook: Codebook) -> Tensor:
        ctx.save_for_backward(codebook.mask if codebook.border is None else None)
        levels = codebook.levels(latent)
        return cast(Tensor, dequantize(levels, codebook.step.to(levels.dtype), latent.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (mask,) = ctx.saved_tensors
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        return dense if mask is None else torch.where(mask, dense, 0.0), None  # no product: infinity times zero is NaN
