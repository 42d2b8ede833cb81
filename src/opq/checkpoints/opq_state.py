"""The tensors of a .opq file as a State; and the base of a delta, which may be such a file, a checkpoint, or itself a delta."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from opq.checkpoints.open import as_state
from opq.checkpoints.state import State
from opq.codec.delta_file import DeltaFile
from opq.codec.file_reader import OpqFile
from opq.codec.file_start import DELTA_MAGIC, MAGIC, magic_of
from opq.errors import SourceError
from opq.quantization.compressed_tensor import CompressedTensor


class OpqState(State):
    """The tensors of an open .opq file or delta.

    Args:
        file: The file, which stays open.
    """

    def __init__(self, file: OpqFile) -> None:
        self._file = file
        self._names = frozenset(file)
        self.metadata = file.metadata

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As State.describe."""
        entry = self._file.entry(name)
        return entry.dtype, entry.shape

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self._file.array(name)

    def compressed(self, name: str) -> CompressedTensor | None:
        """As State.compressed."""
        return cast(CompressedTensor, self._file[name]) if self._file.entry(name).is_weight else None

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without decoding it, as a Mapping would

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


@contextmanager
def open_base(base: Any, *, max_bytes: int | None = None) -> Iterator[State]:
    """Context with the tensors of a delta's base.

    Args:
        base: The path of a .opq file, or what `opq.compress` takes: the path of a checkpoint, a state dict, a module; or a
            sequence of one of these and of deltas, each of which was made from what is before it.
        max_bytes: As in OpqFile, of each file.

    Raises:
        SourceError: One of them cannot be read, or the sequence is empty or in another order.
        FormatError: A .opq file or a delta is not valid.
    """
    first, *deltas = parts_of(base)
    with ExitStack() as stack:
        if magic_of(first) == DELTA_MAGIC:
            raise SourceError(first, "a base cannot begin with a delta; give first the checkpoint that it was made from")
        is_opq = magic_of(first) == MAGIC
        state: State = OpqState(stack.enter_context(OpqFile(first, max_bytes=max_bytes))) if is_opq else as_state(first)
        for delta in deltas:
            state = OpqState(stack.enter_context(DeltaFile(delta, state, max_bytes=max_bytes)))
        yield state


def parts_of(base: Any) -> Sequence[Any]:
    """The checkpoint and the deltas of a base; none if it is None."""
    if base is None:
        return ()
    if not isinstance(base, (list, tuple)):
        return (base,)
    if not base:
        raise SourceError("the base", "it must have at least one checkpoint or file, got an empty sequence")
    return base


@contextmanager
def open_file(source: Any, base: Any = None, *, max_bytes: int | None = None) -> Iterator[OpqFile]:
    """Context with an open .opq file; or with a delta, if a base is given.

    Args:
        source: The path of the file, or its bytes.
        base: As for `open_base`; None for a complete file.
        max_bytes: As in OpqFile.

    Raises:
        SourceError: A file cannot be read, or the base is not that of the delta.
        FormatError: A file is not valid, a delta without a base, or a complete file with one.
    """
    if base is None:
        with OpqFile(source, max_bytes=max_bytes) as file:
            yield file
        return
    with open_base(base, max_bytes=max_bytes) as state, DeltaFile(source, state, max_bytes=max_bytes) as file:
        yield file
