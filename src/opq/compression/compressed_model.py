"""CompressedModel: the result of every function that compresses, and encoding it from codes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from opq.atomic_file import write_file
from opq.checkpoints import State
from opq.codec.entry import dense_bytes, repeated_weights
from opq.codec.file_writer import Layout, write
from opq.compression.analysis import fold_if_requested, pack_rest
from opq.config import Speed
from opq.progress import Progress
from opq.quantization.compressed_tensor import QuantizedWeight
from opq.rate_distortion.plan import AuxiliaryPlan, Plan
from opq.text_table import file_summary, html_text


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """A compressed network in memory.

    Args:
        plan: The plan of the codes; None if they do not follow from a plan, as in lossless, calibrated and trained files.
        layout: The .opq file in pieces.
    """

    plan: Plan | None
    layout: Layout

    @property
    def data(self) -> bytes:
        """The bytes of the .opq file."""
        return b"".join(self.layout.pieces())

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.layout.size

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors in their dtypes; weights of equal values count once."""
        return dense_bytes(self.layout.entries, self._repeats)

    @property
    def file_ratio(self) -> float:
        """Dense bytes over file bytes."""
        return self.dense_bytes / self.file_bytes

    @property
    def num_weights(self) -> int:
        """Number of weights; those of equal values count once."""
        return sum(entry.count for entry in self.layout.entries if entry.is_weight and entry.name not in self._repeats)

    @property
    def bits_per_weight(self) -> float | None:
        """8 * file_bytes over the number of weights; None if there are none."""
        return 8.0 * self.file_bytes / self.num_weights if self.num_weights else None

    @property
    def sparsity(self) -> float | None:
        """Fraction of zeros over all weights, 0..1; None if there are none."""
        nonzero = sum(count for name, count in self.layout.nonzero.items() if name not in self._repeats)
        return 1.0 - nonzero / self.num_weights if self.num_weights else None

    @cached_property
    def _repeats(self) -> set[str]:
        return repeated_weights(self.layout.entries, self.layout.nonzero)

    def __str__(self) -> str:
        """The size in one line."""
        return file_summary(self.file_bytes, self.dense_bytes, self.bits_per_weight, self.sparsity)

    def __repr__(self) -> str:
        """The size in one line, without the tensors."""
        return f"<{type(self).__name__}: {self}>"

    def _repr_html_(self) -> str:
        return html_text(str(self))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write the file atomically: `path` holds its old bytes or all new ones.

        Args:
            path: The path.
            overwrite: Whether to replace an existing file.

        Raises:
            OutputError: The file cannot be written, or it exists and `overwrite` is False.
        """
        write_file(path, self.layout.pieces(), overwrite=overwrite)


def encode_state(
    state: State,
    weights: Mapping[str, QuantizedWeight],
    auxiliary: AuxiliaryPlan,
    *,
    plan: Plan | None = None,
    speed: Speed = "small",
    pack_speed: Speed = "small",
    report: Progress | None = None,
) -> CompressedModel:
    """Encode a checkpoint whose weights are given as codes.

    Args:
        state: All tensors of the checkpoint, weights included.
        weights: {name: weight}. Every other tensor is auxiliary.
        auxiliary: How auxiliary tensors are stored.
        plan: The plan of the codes, if there is one.
        speed: As in CompressionConfig.
        pack_speed: The same for tensors that are not weights.
        report: Called after each weight.

    Returns:
        The compressed network, in memory.

    Raises:
        WeightError, SourceError, TargetError: See `opq.codec.file_writer.write`.
    """
    folded = fold_if_requested(state, auxiliary)
    packs = pack_rest(folded, weights.keys(), auxiliary, speed=pack_speed)
    layout = write(weights, packs=packs, metadata=state.metadata, speed=speed, report=report)
    return CompressedModel(plan, layout)
