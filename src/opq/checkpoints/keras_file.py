"""Checkpoints in HDF5 files, as Keras writes them, and in .keras archives.

The HDF5 library runs in a process of its own: on damaged files it can crash, and fill any amount of memory (docs/log.md).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints.wrappers import warn_of_ignored
from opq.errors import MissingExtraError, SourceError

_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "HDF5_PLUGIN_PRELOAD": "::",  # no filter is loaded from other places
}
_MODEL = "model_weights/"


def read_keras_file(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read the arrays of numbers of an HDF5 file or a .keras archive. Configurations are not looked at.

    An array is named by its path in the file, such as "conv1/conv1/kernel:0", without "model_weights/" if all have it. The
    state of an optimizer and what is not an array of numbers are ignored, with a warning.

    Args:
        path: The file.

    Raises:
        SourceError: The file is damaged, has no array, or refers to other files; or an array would take too much memory.
        MissingExtraError: h5py is not installed.
    """
    try:
        import h5py  # noqa: F401
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "keras") from None
    if os.name != "posix":  # memory cannot be limited
        raise SourceError(path, "HDF5 files are read on Linux and macOS only")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", "-m", "opq.checkpoints.hdf5_process", path],
        capture_output=True,
        check=False,
        env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        has_message = done.returncode == 1 and len(lines) > 1
        raise SourceError(path, lines[-2] if has_message else "a damaged HDF5 file, at which the HDF5 library stops")
    end = done.stdout.index(b"\n")
    contents = json.loads(done.stdout[:end])
    for what, names in contents["ignored"].items():
        warn_of_ignored(path, names, what)
    arrays: dict[str, NDArray[np.generic]] = {}
    offset = end + 1
    for name, kind, shape in contents["arrays"]:
        dtype, count = dtypes.NUMPY[kind], math.prod(shape)
        arrays[name] = np.frombuffer(done.stdout, dtype, count, offset).reshape(shape)
        offset += arrays[name].nbytes
    if all(name.startswith(_MODEL) for name in arrays):
        return {name.removeprefix(_MODEL): array for name, array in arrays.items()}
    return arrays
