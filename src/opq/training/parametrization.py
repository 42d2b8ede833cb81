"""A weight that is always in its codebook: the parametrization that `prepare` attaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from opq.errors import WeightError
from opq.quantization.codebook import UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.quantizer import dequantize, largest_codes, quantize
from opq.quantization.rounding import ROUNDINGS, magnitude_levels, signed_levels
from opq.rate_distortion.plan import LayerPlan


class CodebookParametrization(nn.Module):
    """The mask and the step of one weight; called with its latent values, gives the values they round to.

    Values are bit-equal to `opq.functional.fake_quantize` under the plan, but that the mask is fixed: a kept weight takes a code
    of at least 1 in magnitude however small it becomes, a pruned one is exactly zero however large. The gradient passes straight
    through to kept weights and is zero for pruned ones (Y. Bengio, N. Leonard, A. Courville, arXiv 1308.3432, 2013). While there
    is a threshold, the mask is not fixed: latent values of larger magnitude are kept, and the gradient passes to all.

    Attributes:
        mask: bool, shaped as the weight, True if kept; without effect while there is a threshold.
        step: float32 (): distance of neighbouring codebook values.
        rounding_offset: (), in the dtype that rounding works in.
        max_codes: Largest code, one for all channels or one per channel, shaped to broadcast with the weight.
        threshold: Magnitude at or under which latent values are pruned now, in weight units; None if the mask is fixed.
    """

    mask: Tensor
    step: Tensor
    rounding_offset: Tensor
    max_codes: Tensor

    def __init__(self, mask: Tensor, step: float, rounding_offset: float, max_codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("step", torch.tensor(step, dtype=torch.float32, device=mask.device))
        self.register_buffer("rounding_offset", torch.tensor(rounding_offset, dtype=max_codes.dtype, device=mask.device))
        self.register_buffer("max_codes", max_codes)
        self.threshold: float | None = None
        self._initial: Tensor | None = None

    @classmethod
    def from_plan(cls, name: str, weight: Tensor, plan: LayerPlan) -> Self:
        """The parametrization of `weight`, with the mask that `plan` gives it now.

        With compensated rounding, `initialize` gives the weight the values it is rounded to: rounded alone it would have others.
        """
        try:
            codes = cast(Tensor, quantize(weight, plan))
            found = cls(
                codes != 0, plan.step, plan.rounding_offset, cast(Tensor, largest_codes(weight, plan.step, plan.max_codes))
            )
            if not ROUNDINGS[plan.rounding].is_elementwise:
                found._initial = dequantize(codes, plan.step, weight.dtype)
            return found
        except WeightError as error:
            raise WeightError(name, weight.shape, error.problem) from None

    @classmethod
    def from_file(cls, weight: Tensor, tensor: CompressedTensor, codebook: UniformCodebook) -> Self:
        """The parametrization of a weight of a file, whose values `weight` already has: its zeros are the mask."""
        mask = torch.from_numpy(tensor.codes != 0).to(weight.device)
        return cls(mask, codebook.step, 0.5, cast(Tensor, largest_codes(weight, codebook.step)))

    def initialize(self, weight: Tensor) -> None:
        """Give `weight` the values that training begins at, if they are others than its own."""
        if self._initial is not None:
            weight.copy_(self._initial)
            self._initial = None

    def forward(self, latent: Tensor) -> Tensor:
        """The values that latent ones round to, in their dtype."""
        return cast(Tensor, _StraightThrough.apply(latent, self))  # type: ignore[no-untyped-call]

    def levels(self, latent: Tensor) -> Tensor:
        """Signed codes as floats, 0 if pruned, NaN if latent values are."""
        work = latent if latent.dtype == torch.float64 else latent.float()
        step, offset, max_codes = (number.to(work.dtype) for number in (self.step, self.rounding_offset, self.max_codes))
        kept = self.mask if self.threshold is None else ~(work.abs() <= self.threshold)  # NaN is kept, so that it is seen
        return cast(Tensor, signed_levels(work, magnitude_levels(work, step, offset), max_codes, kept))

    def codes(self, latent: Tensor) -> Tensor:
        """Codes, int32."""
        return self.levels(latent.detach()).to(torch.int32)

    def freeze_mask(self, latent: Tensor) -> None:
        """From now on keep what the threshold keeps now."""
        self.mask.copy_(self.codes(latent) != 0)
        self.threshold = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A network cast to a narrow dtype keeps the very step of the plan.
        exact = {name: buffer for name, buffer in self.named_buffers(recurse=False) if name != "mask"}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(self.mask.device))
        return self


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, codebook: CodebookParametrization) -> Tensor:
        ctx.save_for_backward(codebook.mask if codebook.threshold is None else None)
        levels = codebook.levels(latent)
        return cast(Tensor, dequantize(levels, codebook.step.to(levels.dtype), latent.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (mask,) = ctx.saved_tensors
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        return dense if mask is None else torch.where(mask, dense, 0.0), None  # no product: infinity times zero is NaN
