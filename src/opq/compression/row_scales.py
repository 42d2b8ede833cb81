"""Which weights get steps of their own for each row, if nothing is said about it.

Measured on many networks (docs/log.md), scales of rows help where the rows of a weight are used separately, and hurt
convolutions:

* in a token embedding each row is a token, and frequent tokens have other magnitudes than rare ones. Steps follow the mean
  magnitude of the rows;
* in a recurrent weight each row belongs to a gate of a cell. Steps follow the root of the mean magnitude: LSTMs differ in how
  much of it they need, and none tried was hurt by the root.
"""

from __future__ import annotations

import re

_EMBEDDING = re.compile(
    r"(^|[._])(embed\w*|wte|tok\w*|token_embd|word_embeddings|shared|vocab\w*)(\.weight|_embeddings?)?$", re.IGNORECASE
)
"""Names of token embeddings."""

_RECURRENT = re.compile(r"(^|[._])weight_(ih|hh)(_l\d+(_reverse)?)?$")
"""Names of the weights of LSTM, GRU and RNN in PyTorch."""

_FEWEST_ROWS = 1000


def is_recurrent(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight of this name and shape is one of an LSTM, a GRU or an RNN."""
    return len(shape) == 2 and bool(_RECURRENT.search(name))


def row_power(name: str, shape: tuple[int, ...]) -> float:
    """The power of a row's mean magnitude to which its step is proportional.

    Args:
        name: Name of a weight.
        shape: Its shape.

    Returns:
        1 for token embeddings, 1/2 for recurrent weights, 0 for others: these have one step.
    """
    if is_recurrent(name, shape):
        return 0.5
    if len(shape) != 2:
        return 0.0
    return 1.0 if shape[0] >= max(_FEWEST_ROWS, 2 * shape[1]) and _EMBEDDING.search(name) else 0.0
