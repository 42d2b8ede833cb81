"""Factors of balanced costs for weights whose errors count more than those of others because of their role."""

from __future__ import annotations

from collections.abc import Mapping

from opq.compression.row_scales import is_recurrent
from opq.compression.tied_head import tied_heads

HEAD_SHARE = 0.5
"""The error of a head that is also the embedding counts as much as that of this share of all weights together."""

RECURRENT_FACTOR = 2.0
"""The error of a recurrent weight counts this many times, because it enters the state of the cells at every step."""


def role_factors(shapes: Mapping[str, tuple[int, ...]], repeats: Mapping[str, str], names: frozenset[str]) -> dict[str, float]:
    """The factors that are not 1.

    Args:
        shapes: {weight: shape}.
        repeats: {weight: an earlier weight with its values}.
        names: Names of all tensors of the checkpoint.

    Returns:
        {weight: factor > 1}.
    """
    factors = {name: RECURRENT_FACTOR for name, shape in shapes.items() if is_recurrent(name, shape)}
    factors |= dict.fromkeys(tied_heads(shapes, repeats, names), max(HEAD_SHARE * (len(shapes) - len(repeats)), 1.0))
    return factors
