"""PlannedWeight: a weight of a checkpoint that is quantized when its codes are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from opq.checkpoints import State
from opq.codec.code_stream import CHUNK
from opq.quantization.chunked import code_pieces
from opq.quantization.codebook import Codebook, codebook_of
from opq.quantization.compressed_tensor import CodeReader, compress_tensor
from opq.quantization.nonzero import keep_nonzero
from opq.rate_distortion.layer_plan import LayerPlan


@dataclass(frozen=True, eq=False)
class PlannedWeight:
    """A QuantizedWeight that is quantized when its codes are read.

    A weight with more elements than a chunk is read some rows at a time, unless it is the direction of a weight_norm, of which
    no slice may become all zero.

    Args:
        state: The checkpoint.
        name: Name of the weight in it.
        plan: The weight's plan.
    """

    state: State
    name: str
    plan: LayerPlan

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.plan.shape

    @property
    def dtype(self) -> str:
        """Name of the weight's dtype."""
        return self.state.describe(self.name)[0]

    @property
    def codebook(self) -> Codebook:
        """Multiples of the plan's steps."""
        return codebook_of(self.plan.step, self.plan.rows, self.plan.columns)

    @property
    def trellis(self) -> bool:
        """Whether the codes follow the trellis of `opq.quantization.trellis`."""
        return self.plan.is_trellis

    def read_codes(self) -> CodeReader:
        """A reader of the codes."""
        if (axes := self.state.nonzero_over(self.name)) is not None:
            weight = self.state[self.name]
            codes = keep_nonzero(compress_tensor(weight, self.plan).codes, weight, axes).reshape(-1)
            return lambda start, stop: codes[start:stop]
        if self.plan.count > CHUNK and self.plan.shape:
            return code_pieces(partial(self.state.rows, self.name), self.plan)
        return compress_tensor(self.state[self.name], self.plan).read_codes()
