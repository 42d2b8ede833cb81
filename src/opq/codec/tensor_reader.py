"""An open file whose tensors are read one at a time, with the interface of safetensors.safe_open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.direct_values import DirectWeight
from opq.codec.file_reader import OpqFile

Tensor = TypeVar("Tensor")


class TensorReader(Generic[Tensor]):
    """An open file whose tensors are converted for a framework when they are read.

    Args:
        file: The open file. It is closed when this context manager ends.
        convert: Converts a NumPy array to a tensor of the framework.
    """

    def __init__(self, file: OpqFile, convert: Callable[[NDArray[np.generic]], Tensor]) -> None:
        self._file = file
        self._convert = convert

    def keys(self) -> list[str]:
        """Names of the tensors, in ascending order."""
        return list(self._file)

    def offset_keys(self) -> list[str]:
        """Names of the tensors in the order of the file, which is the order of `keys`."""
        return self.keys()

    def metadata(self) -> dict[str, str]:
        """The checkpoint's metadata, {text: text}."""
        return self._file.metadata

    def get_tensor(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            KeyError: There is no tensor of this name.
            FormatError: Its bytes are damaged.
        """
        try:
            return self._convert(self._file.array(name))
        except KeyError:
            raise KeyError(f"the file has no tensor {name!r}") from None

    def get_slice(self, name: str) -> TensorSlice[Tensor]:
        """A tensor that is read by index; KeyError if there is none of this name."""
        if name not in self._file:
            raise KeyError(f"the file has no tensor {name!r}")
        return TensorSlice(self._file, name, self._convert)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


class TensorSlice(Generic[Tensor]):
    """One tensor of an open file. Each index decodes the tensor, and returns a part of it.

    Of a weight that is coded for fast decoding, only the blocks of rows that the index needs are decoded. Its bytes are read
    and checked once, and kept.

    Args:
        file: The open file.
        name: Name of the tensor.
        convert: Converts a NumPy array to a tensor of the framework.
    """

    def __init__(self, file: OpqFile, name: str, convert: Callable[[NDArray[np.generic]], Tensor]) -> None:
        self._file, self._name, self._convert = file, name, convert
        self._entry = file.entry(name)

    def get_shape(self) -> list[int]:
        """The tensor's shape."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Name of the tensor's dtype in safetensors, such as "F32", "BF16" or "I64"."""
        return dtypes.SAFETENSORS[self._entry.dtype]

    def __getitem__(self, index: Any) -> Tensor:
        """Read the part at `index`, with the indexing of NumPy."""
        return self._convert(np.asarray(self._part(index), order="C"))

    def _part(self, index: Any) -> NDArray[np.generic]:
        first, *others = index if isinstance(index, tuple) else (index,)
        span = _rows(first, self._entry.shape)
        if span is not None and self._direct is not None:
            rows, inner = span
            if len(rows):
                return np.asarray(self._direct.rows(min(rows), max(rows) + 1)[(inner, *others)])
        return np.asarray(self._file.array(self._name)[index])

    @cached_property
    def _direct(self) -> DirectWeight | None:
        return self._file.direct(self._name)


def _rows(first: Any, shape: Sequence[int]) -> tuple[range, Any] | None:
    """The rows that an index of axis 0 selects, and this index counted from the lowest of them; None if it is not simple."""
    if isinstance(first, int) and not isinstance(first, bool) and shape and -shape[0] <= first < shape[0]:
        row = first % shape[0]
        return range(row, row + 1), 0
    if isinstance(first, slice) and shape:
        rows = range(shape[0])[first]
        return rows, slice(None, None, rows.step)
    return None


def check_framework(caller: str, framework: str, known: Sequence[str]) -> None:
    """Raise ValueError if `framework` is not in `known`; the message starts with the name of the caller."""
    if framework not in known:
        raise ValueError(f"{caller}: framework must be one of {', '.join(map(repr, known))}, got {framework!r}")
