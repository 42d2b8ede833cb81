"""CodebookParametrization: keeps a weight in its codebook while its latent values train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from opq.errors import WeightError
from opq.quantization.codebook import ScaledCodebook, UniformCodebook, codebook_of
from opq.quantization.compressed_tensor import CompressedTensor
from opq.quantization.nonzero import keep_nonzero
from opq.quantization.quantizer import dequantize, largest_codes, quantize
from opq.quantization.rounding import ROUNDINGS, magnitude_levels, signed_levels
from opq.rate_distortion.layer_plan import LayerPlan
from opq.rate_distortion.scales import Scales, steps_like


class CodebookParametrization(nn.Module):
    """Mask and steps of one weight: maps latent values to the codebook values that they round to.

    The values are bit-equal to `opq.functional.fake_quantize` under the plan, except that the mask is fixed: a kept weight has
    a code of at least 1 in magnitude, and a pruned weight is exactly zero, whatever its latent value. The gradient is that of
    the straight-through estimator: it passes to kept weights and is zero for pruned ones (Y. Bengio, N. Leonard, A. Courville,
    arXiv 1308.3432, 2013). While a threshold is set, the mask is not fixed: latent values of larger magnitude are kept, and the
    gradient passes to all.

    Args:
        mask: bool, shaped as the weight, True = kept. It has no effect while a threshold is set.
        step: Distance of neighbouring codebook values, > 0; stored as float32. With scales it is that where scales are 0.
        rounding_offset: Summand before magnitudes in steps are rounded down: 0.5 rounds to nearest.
        max_codes: Largest codes, shaped to broadcast with the weight. Their dtype is the one that rounding works in.
        rows: Scale of each row, as in LayerPlan; None for none.
        columns: Scale of each column, likewise.

    Attributes:
        threshold: Magnitude at or below which latent values are pruned, in weight units and over the factors of scales; None if
            the mask is fixed.
    """

    mask: Tensor
    step: Tensor
    rounding_offset: Tensor
    max_codes: Tensor
    rows: Tensor | None
    columns: Tensor | None
    scaled_steps: Tensor | None

    def __init__(
        self,
        mask: Tensor,
        step: float,
        rounding_offset: float,
        max_codes: Tensor,
        rows: Scales | None = None,
        columns: Scales | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("step", torch.tensor(step, dtype=torch.float32, device=mask.device))
        self.register_buffer("rounding_offset", torch.tensor(rounding_offset, dtype=max_codes.dtype, device=mask.device))
        self.register_buffer("max_codes", max_codes)
        for key, scales in (("rows", rows), ("columns", columns)):
            array = None if scales is None else torch.from_numpy(np.array(scales, dtype=np.int8)).to(mask.device)
            self.register_buffer(key, array)
        steps = steps_like(step, rows, columns, tuple(mask.shape))
        scaled = None if isinstance(steps, float) else torch.from_numpy(steps).to(mask.device)
        self.register_buffer("scaled_steps", scaled)
        self.threshold: float | None = None
        self._initial: Tensor | None = None

    @classmethod
    def from_plan(cls, name: str, weight: Tensor, plan: LayerPlan, nonzero_over: tuple[int, ...] | None = None) -> Self:
        """Make the parametrization of a weight under a plan.

        Under compensated rounding, `initialize` sets the weight to its quantized values, since element-wise rounding of the
        original ones would give other codes. In place of a trellis each weight is rounded alone, to multiples of two steps,
        which takes about as many bits.

        Args:
            name: Name of the weight, for errors.
            weight: Its values, which decide the mask.
            plan: The plan of this weight.
            nonzero_over: Axes of slices of which at least one element is kept; None for none.

        Raises:
            WeightError: The weight cannot be quantized under the plan.
        """
        plan = plan.without_trellis
        try:
            codes = cast(Tensor, quantize(weight, plan))
            if nonzero_over is not None:
                kept = keep_nonzero(codes.cpu().numpy(), weight.detach().double().cpu().numpy(), nonzero_over)
                codes = torch.from_numpy(kept).to(codes.device)
            max_codes = cast(Tensor, largest_codes(weight, plan.steps, plan.max_codes))
            made = cls(codes != 0, plan.step, plan.rounding_offset, max_codes, plan.rows, plan.columns)
            if not ROUNDINGS[plan.rounding].is_elementwise:
                made._initial = dequantize(codes, plan.steps, weight.dtype)
            return made
        except WeightError as error:
            raise WeightError(name, weight.shape, error.problem) from None

    @classmethod
    def from_file(cls, weight: Tensor, tensor: CompressedTensor, codebook: UniformCodebook | ScaledCodebook) -> Self:
        """Make the parametrization of a weight of a file.

        Args:
            weight: Tensor that already holds the values of the file.
            tensor: The weight in the file, without a trellis; codes of 0 are pruned.
            codebook: Its codebook.
        """
        mask = torch.from_numpy(tensor.codes != 0).to(weight.device)
        rows, columns = (codebook.rows, codebook.columns) if isinstance(codebook, ScaledCodebook) else (None, None)
        steps = steps_like(codebook.step, rows, columns, tensor.shape)
        return cls(mask, codebook.step, 0.5, cast(Tensor, largest_codes(weight, steps)), rows, columns)

    @property
    def steps(self) -> Tensor:
        """The step of each element, float32, shaped to broadcast with the weight."""
        return self.step if self.scaled_steps is None else self.scaled_steps

    def codebook(self) -> UniformCodebook | ScaledCodebook:
        """The codebook of the file."""
        rows, columns = (None if scales is None else scales.cpu().numpy() for scales in (self.rows, self.columns))
        return codebook_of(float(self.step), rows, columns)

    def magnitudes(self, latent: Tensor) -> Tensor:
        """Magnitudes of latent values over the factors of scales, in the dtype that rounding works in."""
        work = latent if latent.dtype == torch.float64 else latent.float()
        return work.abs() if self.scaled_steps is None else work.abs() / (self.scaled_steps / self.step)

    def initialize(self, weight: Tensor) -> None:
        """Set `weight` to the values at which training begins, in place, if they differ from its own."""
        if self._initial is not None:
            weight.copy_(self._initial)
            self._initial = None

    def forward(self, latent: Tensor) -> Tensor:
        """Codebook values of latent values, in their shape and dtype."""
        return cast(Tensor, _StraightThrough.apply(latent, self))  # type: ignore[no-untyped-call]

    def levels(self, latent: Tensor) -> Tensor:
        """Signed codes as floats, shaped as `latent`: 0 if pruned, NaN if the latent value is NaN."""
        work = latent if latent.dtype == torch.float64 else latent.float()
        steps, offset, max_codes = (number.to(work.dtype) for number in (self.steps, self.rounding_offset, self.max_codes))
        kept = self.mask if self.threshold is None else ~(self.magnitudes(work) <= self.threshold)  # keeps NaN, to notice it
        return cast(Tensor, signed_levels(work, magnitude_levels(work, steps, offset), max_codes, kept))

    def codes(self, latent: Tensor) -> Tensor:
        """Signed codes, int32, shaped as `latent`; 0 if pruned."""
        return self.levels(latent.detach()).to(torch.int32)

    def freeze_mask(self, latent: Tensor) -> None:
        """Fix the mask as the threshold gives it for `latent` now, and remove the threshold."""
        self.mask.copy_(self.codes(latent) != 0)
        self.threshold = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Casting a network to a narrower dtype must not change the plan's steps.
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
        return cast(Tensor, dequantize(levels, codebook.steps.to(levels.dtype), latent.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (mask,) = ctx.saved_tensors
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        return dense if mask is None else torch.where(
            mask, dense, 0.0
        ), None  # a product would turn an infinite gradient times zero into NaN
