"""Sections of codes of both kinds: adaptive ones (`opq.codec.code_stream`) and fast ones (`opq.codec.fast_section`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from opq.codec import code_stream
from opq.codec.code_stream import StreamError
from opq.codec.fast_section import Block, FastSection, is_fast
from opq.errors import FormatError
from opq.thread_map import thread_map


def is_trellis(section: bytes | memoryview) -> bool:
    """Whether the codes of a section follow the trellis. A section without bytes, whose codes are 0, does not say so."""
    return section[0] >> 5 == 1 if is_fast(section) else code_stream.is_trellis(section)


def decode_batch(weights: Iterable[tuple[bytes | memoryview, tuple[int, ...]]]) -> list[NDArray[np.int32]]:
    """The codes of sections of both kinds, on all cores.

    Args:
        weights: (section, untrusted; shape) of each weight.

    Raises:
        StreamError: A section does not hold exactly a weight of its shape.
    """
    parts = list(weights)
    adaptive = [number for number, (section, _) in enumerate(parts) if not is_fast(section)]
    try:
        decoded = dict(zip(adaptive, code_stream.decode_batch(parts[number] for number in adaptive), strict=True))
    except StreamError as error:
        raise StreamError(adaptive[error.number], error.problem) from None
    for number, (section, shape) in enumerate(parts):
        if number not in decoded:
            try:
                decoded[number] = decode_fast(section, shape)
            except FormatError as error:
                raise StreamError(number, error.problem) from None
    return [decoded[number] for number in range(len(parts))]


def decode_codes(section: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The codes of a section of either kind; FormatError if it does not hold exactly a weight of this shape."""
    return decode_batch([(section, shape)])[0]


def decode_fast(section: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The codes of a fast section."""
    codes = np.empty(shape, dtype=np.int32)
    run(FastSection(section, shape).jobs(lambda found, _: found, codes.reshape(-1)))
    return codes


def decode_pieces(section: bytes | memoryview, shape: tuple[int, ...]) -> Iterator[NDArray[np.int32]]:
    """As `decode_codes`, in one-dimensional pieces, whose concatenation is the codes in row-major order."""
    if not is_fast(section):
        return code_stream.decode_pieces(section, shape)
    parsed = FastSection(section, shape)

    def decode(block: Block) -> NDArray[np.int32]:
        piece = np.empty(block.rows * parsed.columns, dtype=np.int32)
        run(parsed.jobs(lambda found, _: found, piece, [block]))
        return piece

    return thread_map(decode, parsed.blocks)


def run(jobs: Iterable[Callable[[], None]]) -> None:
    """Run functions on all cores."""
    for _ in thread_map(lambda job: job(), jobs):
        pass
