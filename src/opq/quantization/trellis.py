"""Trellis-coded quantization of the rows of a matrix: two quantizers of twice the step, and states that decide between them.

Values are multiples n of a codebook's step. Quantizer 0 has the even n, quantizer 1 the odd n and 0. The values of both are two
steps apart, so a code k takes as many bits as in uniform rounding to multiples of two steps; n = (2 |k| - q) sign(k) in
quantizer q. The state is three bits s2 s1 s0, all 0 at the start of every row. Its quantizer is s0, and k moves it:

    s2 s1 s0  ->  s1 s0 b,        b = parity of k, xor s1, xor s2

So sequences of codes have values that lie as densely as single steps. Of all sequences that the states allow, the Viterbi
algorithm finds the one of least squared error (M. Marcellin, T. Fischer, 1990, with the convolutional code of 8 states of G.
Ungerboeck, 1982). docs/method.md, section 11, has the gain; docs/format.md how codes are stored.
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import device

from opq.quantization.statistics import blocks
from opq.thread_map import thread_map

SMALLEST_LIMIT = 3
"""The smallest valid limit on |n|: magnitudes up to one step then have an n of every kind."""

_ROWS, _ELEMENTS = 2048, 2**21
"""The largest number of rows that are quantized together, and of elements if these are several rows."""

_COLUMNS = 16
"""The number of columns whose errors are computed together, and after which costs are counted from the least."""

_BRANCHES = (0, 2, 3, 1, 2, 0, 1, 3)
"""Of the |n| that lead from state i < 4 to state 2 i + b the smallest one, at index 2 i + b; others follow at distances of 4.
Those that lead from state i + 4 to state 2 i + b are at (2 i + b + 4) mod 8. Before 3 there is 0, whose k is even too."""


def trellis_codes(scaled: Any, max_codes: Any, xp: Any) -> Any:
    """The codes n of least squared error in each row.

    Rows are independent of each other, all operations are elementwise, and ties are decided by the order of states. So every
    array library and every division into rows gives the same codes.

    Args:
        scaled: (rows, columns): weights over their steps, float32 or float64, with at least one element.
        max_codes: Largest codes, at least SMALLEST_LIMIT, shaped to broadcast with `scaled`. Larger magnitudes than two less
            count as two less.
        xp: The array API functions for `scaled`.

    Returns:
        Signed codes n in the dtype and shape of `scaled`. The code of a weight that is 0 is 0.
    """
    rows, columns = scaled.shape
    limited = xp.minimum(xp.abs(scaled), max_codes - 2.0)  # no n is further from a magnitude than 2

    def quantize(block: tuple[int, int]) -> Any:
        part = xp.permute_dims(limited[slice(*block), :], (1, 0))
        magnitudes = xp.reshape(xp.reshape(part, (-1,)), part.shape)  # so that each column is contiguous: it is faster
        codes = xp.permute_dims(_traced(magnitudes, *_survivors(magnitudes, xp), xp), (1, 0))
        return xp.where(scaled[slice(*block), :] < 0, -codes, codes)

    return xp.concat(list(thread_map(quantize, blocks(rows, columns, min(_ROWS * columns, _ELEMENTS)))), axis=0)


def _survivors(magnitudes: Any, xp: Any) -> tuple[list[Any], Any]:
    """The best path to each state.

    Args:
        magnitudes: (columns, rows).
        xp: The array API functions for `magnitudes`.

    Returns:
        For each column whether the best path to state 2 i + b comes from state i + 4 and not from i, bool (4, 2, rows) by i and
        b; and the state in which the best of all paths ends, int64 (rows,).
    """
    columns, rows = magnitudes.shape
    costs = xp.stack([magnitudes[0, :] * 0.0] + [magnitudes[0, :] * 0.0 + math.inf] * 8)[:8, :]
    took_second = []  # whether the best path to each state comes from the second of its two states, for each column
    for start in range(0, columns, _COLUMNS):
        errors = _branch_errors(magnitudes[start : start + _COLUMNS, :], xp)
        first, second = (xp.reshape(errors[:, k : k + 8, :], (-1, 4, 2, rows)) for k in (0, 4))
        for column in range(errors.shape[0]):
            earlier = xp.reshape(costs, (2, 4, 1, rows))
            by_first, by_second = earlier[0, ...] + first[column, ...], earlier[1, ...] + second[column, ...]
            took_second.append(by_second < by_first)
            costs = xp.minimum(by_first, by_second)
        costs = costs - xp.min(costs, axis=(0, 1))
    costs = xp.reshape(costs, (8, rows))
    state, least = xp.zeros(rows, dtype=xp.int64, device=device(costs)), costs[0, :]
    for other in range(1, 8):
        state = xp.where(costs[other, :] < least, other, state)
        least = xp.minimum(least, costs[other, :])
    return took_second, state


def _traced(magnitudes: Any, took_second: list[Any], state: Any, xp: Any) -> Any:
    """|n| on the paths that end in `state`, shaped as `magnitudes`; arguments as in `_survivors`."""
    places = xp.arange(magnitudes.shape[1], device=device(magnitudes))
    parts = []
    for start in reversed(range(0, magnitudes.shape[0], _COLUMNS)):
        part = magnitudes[start : start + _COLUMNS, :]
        states = [state]
        for second in reversed(took_second[start : start + _COLUMNS]):
            state = (state >> 1) + 4 * xp.take(xp.reshape(second, (-1,)), state * len(places) + places)
            states.append(state)
        before, after = xp.stack(states[:0:-1]), xp.stack(states[-2::-1])
        odd = (after ^ (before >> 1) ^ (before >> 2)) & 1
        smallest = xp.where((before & 1) == 1, 3 - 2 * odd, 2 * odd)  # as in _BRANCHES
        parts.append(_nearest(part, xp.astype(smallest, part.dtype), xp))
    return xp.concat(parts[::-1], axis=0)


def _branch_errors(magnitudes: Any, xp: Any) -> Any:
    """Squared errors (columns, 12, rows) of the branches: in the order of _BRANCHES, then the first four again."""
    found = {}
    for smallest in sorted(set(_BRANCHES)):
        error = magnitudes - _nearest(magnitudes, smallest, xp)
        found[smallest] = error * error
    for smallest in (1, 2):  # a weight of 0 keeps the code 0
        found[smallest] = xp.where(magnitudes == 0, math.inf, found[smallest])
    return xp.stack([found[smallest] for smallest in (*_BRANCHES, *_BRANCHES[:4])], axis=1)


def _nearest(magnitudes: Any, smallest: Any, xp: Any) -> Any:
    """The |n| of a branch nearest to each magnitude, by the branch's smallest n: a number, or an array of them."""
    nearest = smallest + 4.0 * xp.floor((magnitudes - smallest) * 0.25 + 0.5)
    return xp.where((smallest == 3) & (magnitudes < 1.5), 0.0, nearest)
