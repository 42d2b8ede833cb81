"""Memory that a caller gives for the tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.codec.entry import Entry

Arrays = Mapping[str, NDArray[np.generic]]


def check_given(given: Arrays, entries: Mapping[str, Entry]) -> None:
    """Raise ValueError if an array is not memory for the tensor of its name."""
    for name, array in given.items():
        if name not in entries:
            raise ValueError(f"out[{name!r}]: the file has no tensor of this name")
        entry, found = entries[name], f"{dtypes.name_of(array.dtype)} {array.shape}"
        if array.dtype != dtypes.NUMPY[entry.dtype] or array.shape != entry.shape:
            raise ValueError(f"out[{name!r}] must be {entry.dtype} {entry.shape}, as in the file, got {found}")
        if not array.flags.carray:
            raise ValueError(f"out[{name!r}] must be C-contiguous, aligned and writable, got {found} that is not")


def new_array(entry: Entry, given: Arrays) -> NDArray[np.generic]:
    """The given array of a tensor, or a new one."""
    array = given.get(entry.name)
    return np.empty(entry.shape, dtype=dtypes.NUMPY[entry.dtype]) if array is None else array


def filled(given: NDArray[np.generic], array: NDArray[np.generic]) -> NDArray[np.generic]:
    """A given array with the values of another one."""
    given[...] = array
    return given
