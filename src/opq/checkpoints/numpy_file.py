"""Checkpoints in .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opq.errors import SourceError


def read_numpy_file(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read the arrays of a .npz file, without unpickling.

    Args:
        path: The file.

    Raises:
        SourceError: The file is damaged, or an array is of objects, text or a type that NumPy does not know.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            for name in content.files:
                arrays[name] = content[name]
    except Exception as error:  # the readers of NumPy, zipfile and zlib raise errors of many kinds
        raise SourceError(path, f"not a .npz file of plain arrays: {str(error)[:200] or error!r}") from None
    if odd := [name for name, array in arrays.items() if array.dtype.kind not in "biufc"]:
        raise SourceError(path, f"array {odd[0]!r} is of {arrays[odd[0]].dtype}, which NumPy does not know as a number")
    return arrays
