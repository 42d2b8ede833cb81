"""Codes to bytes and back: one static table a tensor, asymmetric numeral systems by the constriction library.

A section holds the number of tokens (LEB128), a frequency byte for each, and the coder's words. The coder gives back, in
this order: the token of every weight in row-major order; one sign bit (1 = negative) for every non-zero one; then the low
bits of the wide tokens, narrowest first, each group in row-major order. docs/format.md is the normative text.
"""

from __future__ import annotations

import math

import constriction
import numpy as np
from numpy.typing import NDArray

from opq.allocation.layers import LayerStatistics
from opq.codec.cursor import Cursor, varint
from opq.codec.tables import bytes_to_coder, encode_table, table_model, words_to_bytes
from opq.codec.tokens import FIRST, LOW_BITS, TOKENS, tokenize
from opq.errors import FormatError

_WHERE = "codes"


def encode_codes(codes: NDArray[np.int32]) -> bytes:
    """The section of `codes`: int32 of any shape, magnitudes below 2^24."""
    flat = codes.reshape(-1)
    magnitudes = np.abs(flat)
    tokens = tokenize(magnitudes)
    counts = np.bincount(tokens)
    table = encode_table(counts)
    coder = constriction.stream.stack.AnsCoder()
    # A stack: what is decoded first is pushed last.
    for width in range(int(LOW_BITS[len(table) - 1]), 0, -1):
        group = LOW_BITS[tokens] == width
        low = (magnitudes[group] - FIRST[tokens[group]]).astype(np.int32)
        if len(low):
            coder.encode_reverse(low, constriction.stream.model.Uniform(2**width))
    if len(table) > 1:
        signs = (flat[magnitudes > 0] < 0).astype(np.int32)
        coder.encode_reverse(signs, constriction.stream.model.Uniform(2))
        coder.encode_reverse(tokens, table_model(table))
    return varint(len(table)) + table + words_to_bytes(coder.get_compressed())


def decode_codes(section: bytes, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The codes of `section`; FormatError unless it holds exactly a tensor of `shape`."""
    cursor = Cursor(section, _WHERE)
    size = cursor.varint(limit=TOKENS)
    table = cursor.take(size)
    if size == 0 or (table[-1] == 0):
        raise FormatError(_WHERE, "the frequency table is empty or ends in zero")
    coder = bytes_to_coder(cursor.rest())
    count = math.prod(shape)
    codes = _decode(coder, table, count) if size > 1 else np.zeros(count, dtype=np.int32)
    if not coder.is_empty():
        raise FormatError(_WHERE, "data are left after the last weight")
    return codes.reshape(shape)


def _decode(coder: constriction.stream.stack.AnsCoder, table: bytes, count: int) -> NDArray[np.int32]:
    tokens = coder.decode(table_model(table), count)
    nonzero = np.flatnonzero(tokens)
    negative = coder.decode(constriction.stream.model.Uniform(2), len(nonzero)).astype(bool)
    magnitudes: NDArray[np.int32] = FIRST[tokens].astype(np.int32)
    widths = LOW_BITS[tokens]
    for width in range(1, int(LOW_BITS[len(table) - 1]) + 1):
        group = np.flatnonzero(widths == width)
        if len(group):
            magnitudes[group] += coder.decode(constriction.stream.model.Uniform(2**width), len(group))
    magnitudes[nonzero[negative]] *= -1
    return magnitudes


def expected_bits(statistics: LayerStatistics, threshold: float, step: float, offset: float) -> float:
    """Bits of the section for a weight with these statistics, from its measured magnitudes instead of its codes.

    Arguments as in LayerPlan, in weight units. Exact but for rounding where the statistics hold every magnitude.
    """
    magnitudes = statistics.magnitudes
    sampled, largest = len(magnitudes), float(magnitudes[-1])
    if largest <= threshold:
        return 8.0 * 2.0
    # Token k > 0 begins at border k - 1; only those that the largest magnitude reaches.
    last = max(int(FIRST.searchsorted(largest / step + offset, side="right")) - 1, 1)
    borders = np.maximum((FIRST[1 : last + 1] - offset) * step, threshold)
    borders[0] = threshold
    # In the magnitudes' own type: NumPy would else turn all of them to float64, which takes longer than the search.
    places = magnitudes.searchsorted(borders.astype(magnitudes.dtype), side="right")
    counts = np.empty(last + 1)
    counts[0], counts[1:-1], counts[-1] = places[0], places[1:] - places[:-1], sampled - places[-1]
    used = counts[counts > 0.0]
    entropy = sampled * math.log2(sampled) - float(used @ np.log2(used))
    raw = sampled - float(counts[0]) + float(counts @ LOW_BITS[: last + 1])
    # A word and a half is what the coder's last state takes on average.
    return (entropy + raw) * statistics.count / sampled + 8.0 * (1 + last + 1) + 16.0
