"""What changed between two files or checkpoints of one network, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints import State, as_state
from opq.codec.file_reader import OpqFile
from opq.codec.file_start import MAGIC
from opq.natural_order import natural_key
from opq.progress import Progress, counted, show_progress
from opq.quantization.codebook import ScaledCodebook, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.reporting.inspect import bytes_by_tensor
from opq.text_table import LINE, format_table, html_text

_SHOWN = 400
_ORDER = ("removed", "added", "reshaped", "changed", "same")


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of two checkpoints.

    Args:
        name: Its name.
        change: "same" (bit for bit, dtypes too), "changed", "reshaped", "removed" (only the first has it) or "added".
        shapes: Its shape in the first and in the second; None where it is not.
        dtypes: Its dtype, likewise.
        relative_error: Norm of the difference over the norm in the first. None if that is 0, if the tensor is only in one or
            complex, or if its shape differs.
        codes_changed: Fraction of the codes that differ, 0..1; None unless both are .opq files and have the weight in codes.
        steps: The quantization steps, None where there is none.
        stored_bytes: Bytes that it takes in a .opq file, otherwise in its dtype; 0 where it is not.
    """

    name: str
    change: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    relative_error: float | None
    codes_changed: float | None
    steps: tuple[float | None, float | None]
    stored_bytes: tuple[int, int]


@dataclass(frozen=True)
class Difference:
    """What changed between two checkpoints.

    Args:
        names: Names of the two files.
        file_bytes: Bytes of a .opq file, otherwise of all tensors.
        tensors: One for each tensor, in natural order of the names.
    """

    names: tuple[str, str]
    file_bytes: tuple[int, int]
    tensors: tuple[TensorDifference, ...]

    @property
    def counts(self) -> dict[str, int]:
        """{change: number of tensors}, without those that are 0."""
        found = {change: sum(tensor.change == change for tensor in self.tensors) for change in _ORDER}
        return {change: count for change, count in found.items() if count}

    def to_dict(self) -> dict[str, Any]:
        """The difference as plain objects, ready for JSON."""
        return {**asdict(self), "counts": self.counts}

    def rows(self) -> list[tuple[str, ...]]:
        """A row for each tensor that is not the same: name, change, error, codes, steps, bytes."""
        changed = [tensor for tensor in self.tensors if tensor.change != "same"]
        return [
            (
                tensor.name,
                tensor.change,
                "" if tensor.relative_error is None else f"{100.0 * tensor.relative_error:.3g}%",
                "" if tensor.codes_changed is None else f"{100.0 * tensor.codes_changed:.3g}%",
                "" if None in tensor.steps else f"{tensor.steps[1] / tensor.steps[0]:.3g}",  # type: ignore[operator]
                f"{tensor.stored_bytes[1] - tensor.stored_bytes[0]:+,}",
            )
            for tensor in changed[:_SHOWN]
        ]

    def summary(self) -> str:
        """The totals in one line."""
        parts = ", ".join(f"{count:,} {change}" for change, count in self.counts.items())
        return f"{parts or 'no tensors'}; {self.file_bytes[0]:,} bytes before, {self.file_bytes[1]:,} after"

    def __str__(self) -> str:
        """A row for each tensor that is not the same, and a line of totals."""
        rows = self.rows()
        left_out = sum(tensor.change != "same" for tensor in self.tensors) - len(rows)
        more = [f"and {left_out:,} more"] if left_out else []
        table = [format_table(COLUMNS, rows, width=LINE), *more, ""] if rows else []
        return "\n".join([*table, self.summary()])

    def __repr__(self) -> str:
        """The totals, in brackets."""
        return f"<Difference: {self.summary()}>"

    def _repr_html_(self) -> str:
        return html_text(str(self))


COLUMNS = ("tensor", "change", "error", "codes", "step x", "bytes")
"""Columns of `Difference.rows`."""


def diff(before: Any, after: Any, *, progress: Progress | bool = False) -> Difference:
    """Compare two files or checkpoints of one network.

    Args:
        before: The path of a .opq file, or what `opq.compress` takes: the path of a checkpoint, a state dict, a module.
        after: Likewise.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.

    Returns:
        The difference, which prints as a table.

    Raises:
        SourceError: One of them cannot be read.
        FormatError: A .opq file is not valid.
    """
    with ExitStack() as stack, show_progress(progress) as report:
        one, two = (_Side(source, stack) for source in (before, after))
        names = sorted({*one.state, *two.state}, key=natural_key)
        tensors = tuple(_compare(name, one, two) for name in counted(names, report, "comparing", len(names)))
        return Difference((one.name, two.name), (one.file_bytes, two.file_bytes), tensors)


class _Side:
    """One of the two checkpoints."""

    def __init__(self, source: Any, stack: ExitStack) -> None:
        self.name = Path(source).name if isinstance(source, (str, os.PathLike)) else type(source).__name__
        file = stack.enter_context(OpqFile(source)) if _is_opq(source) else None
        self.state: State = as_state(source if file is None else file)
        self._bytes: dict[str, int] = {} if file is None else dict(bytes_by_tensor(file))
        self.file_bytes = sum(map(self.bytes_of, self.state)) if file is None else file.file_bytes

    def bytes_of(self, name: str) -> int:
        """Bytes that a tensor takes; 0 if there is none of this name."""
        if name not in self.state:
            return 0
        if name in self._bytes:
            return self._bytes[name]
        kind, shape = self.state.describe(name)
        return dtypes.dense_bytes(kind, int(np.prod(shape, dtype=np.int64)))


def _is_opq(source: Any) -> bool:
    if not isinstance(source, (str, os.PathLike)) or not Path(source).is_file():
        return False
    with open(source, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _compare(name: str, one: _Side, two: _Side) -> TensorDifference:
    described = [side.state.describe(name) if name in side.state else (None, None) for side in (one, two)]
    kinds, shapes = (described[0][0], described[1][0]), (described[0][1], described[1][1])
    stored = one.bytes_of(name), two.bytes_of(name)
    codes = [side.state.compressed(name) if name in side.state else None for side in (one, two)]
    steps = _step(codes[0]), _step(codes[1])
    if None in kinds:
        return TensorDifference(name, "removed" if kinds[1] is None else "added", shapes, kinds, None, None, steps, stored)
    if shapes[0] != shapes[1]:
        return TensorDifference(name, "reshaped", shapes, kinds, None, None, steps, stored)
    first, second = one.state[name], two.state[name]
    same = kinds[0] == kinds[1] and first.tobytes() == second.tobytes()
    share = None
    if codes[0] is not None and codes[1] is not None:
        share = float(np.mean(codes[0].codes != codes[1].codes))
    error = 0.0 if same else _relative_error(first, second)
    return TensorDifference(name, "same" if same else "changed", shapes, kinds, error, share, steps, stored)


def _step(weight: CompressedTensor | None) -> float | None:
    if weight is None or not isinstance(weight.codebook, UniformCodebook | ScaledCodebook):
        return None
    return weight.codebook.step


def _relative_error(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    if first.dtype.kind == "c" or second.dtype.kind == "c":
        return None
    squares = energy = 0.0
    for one, two in zip(_parts(first), _parts(second), strict=True):
        squares, energy = squares + float((two - one) @ (two - one)), energy + float(one @ one)
    return (squares / energy) ** 0.5 if energy else None


def _parts(array: NDArray[Any], size: int = 2**20) -> Iterator[NDArray[np.float64]]:
    flat = array.reshape(-1)
    for start in range(0, max(flat.size, 1), size):
        yield flat[start : start + size].astype(np.float64)
