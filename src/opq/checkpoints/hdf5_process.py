"""Write the arrays of an HDF5 file to stdout: `python -m opq.checkpoints.hdf5_process FILE`, which read_keras_file starts.

The first line of the output is JSON, {"ignored": {what: [path in the file]}, "arrays": [[path in the file, dtype, shape]]}.
The bytes of the arrays follow. An error is one line on stderr, and exit status 1.
"""

from __future__ import annotations

import io
import json
import math
import resource
import sys
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from opq import dtypes
from opq.checkpoints.file_kind import allowed_bytes, check_memory, kind_of
from opq.errors import SourceError

_WEIGHTS = "model.weights.h5"  # in a .keras archive
_OPTIMIZER = ("optimizer", "optimizer_weights")
_OWN_MEMORY = 1 << 30  # address space of Python and its libraries


def main(path: Path) -> None:
    """Write the arrays of a file.

    Args:
        path: An HDF5 file or a .keras archive.

    Raises:
        SystemExit: The file cannot be read.
    """
    most = _OWN_MEMORY + 2 * allowed_bytes(path)
    _, highest = resource.getrlimit(resource.RLIMIT_AS)
    if highest == resource.RLIM_INFINITY or most < highest:
        resource.setrlimit(resource.RLIMIT_AS, (most, highest))
    try:
        _write(path)
    except SourceError as error:
        sys.exit(error.problem)
    except Exception as error:  # the exceptions of h5py are not documented
        reason = " ".join(str(error).split())[:200]
        sys.exit(f"a damaged HDF5 file ({type(error).__name__}: {reason}); save it again")


def _write(path: Path) -> None:
    ignored: dict[str, list[str]] = {}
    content: Path | io.BytesIO = path
    if kind_of(path) == "keras":
        with zipfile.ZipFile(path) as archive:
            ignored["not weights"] = [name for name in archive.namelist() if name != _WEIGHTS]
            content = io.BytesIO(archive.read(_WEIGHTS))
    with h5py.File(content, "r") as file:
        ignored["state of an optimizer"] = [name for name in file if name in _OPTIMIZER]
        found = dict(_datasets(file, path, ignored["state of an optimizer"]))
        kinds = {name: kind for name, item in found.items() if (kind := _dtype(item)) is not None}
        ignored["not an array of numbers"] = [name for name in found if name not in kinds]
        check_memory(path, ((name, _largest(found[name])) for name in kinds))
        for name, kind in kinds.items():
            if found[name].is_virtual or found[name].external:
                raise SourceError(path, f"{name!r} has its data in other files; save it with them")
            if kind not in dtypes.NUMPY:
                raise SourceError(path, f"{name!r}: dtype {kind} is not supported; convert the array, or remove it")
        arrays = [(name, kind, found[name].shape) for name, kind in kinds.items()]
        sys.stdout.buffer.write(json.dumps({"ignored": ignored, "arrays": arrays}).encode() + b"\n")
        for name in kinds:
            array = np.asarray(found[name][()])
            sys.stdout.buffer.write(array.astype(array.dtype.newbyteorder("="), copy=False).tobytes())


def _datasets(file: Any, path: Path, skipped: Collection[str]) -> Iterator[tuple[str, Any]]:
    """(path in the file, dataset) of everything in an HDF5 file that is no group. Only its own objects are followed."""
    visited: set[int] = set()
    waiting = [("", file)]
    while waiting:
        prefix, group = waiting.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in visited:
            raise SourceError(path, f"it has the group {prefix!r} twice; save it again")
        visited.add(address)
        for name in group:
            if group is file and name in skipped:
                continue
            place = prefix + name
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise SourceError(path, f"{place!r} is a link, and links are not followed; save it without links")
            item = group[name]
            if isinstance(item, h5py.Group):
                waiting.append((place + "/", item))
            else:
                yield place, item


def _dtype(item: Any) -> str | None:
    """Name of a dataset's dtype; None if it is no array of numbers."""
    if getattr(item, "shape", None) is None:
        return None
    if item.dtype == "V2" and item.attrs.get("dtype") == "bfloat16":  # HDF5 has no such type, and Keras marks it so
        return "bfloat16"
    return str(item.dtype.name) if item.dtype.kind in "biufc" else None


def _largest(dataset: Any) -> int:
    """Bytes of a dataset, or of one of its chunks if these are larger: a chunk is read as a whole."""
    count: int = max(math.prod(dataset.shape), math.prod(dataset.chunks or ()))
    return count * int(dataset.dtype.itemsize)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
