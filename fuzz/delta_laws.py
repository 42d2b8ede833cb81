"""Laws of reading deltas that hold for any bytes, and the seeds of their fuzzer; the fuzzer and the tests share them."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from codec_strategies import encode_file, stepped, trellised_as
from laws import LARGEST, BrokenLawError
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints.state import TensorState
from opq.codec.delta_file import DeltaFile
from opq.codec.delta_writer import write_delta
from opq.codec.file_reader import OpqFile
from opq.codec.verify import verify
from opq.errors import FormatError, SourceError
from opq.reporting.inspect_delta import inspect_delta

_RAMP = np.arange(16640)
_CODES = np.array([[1, -2, 0, 9], [0, 3, -300, 1]] * 40, dtype=np.int32)

TENSORS: dict[str, NDArray[np.generic]] = {
    "bfloat16": np.sin(_RAMP).astype(dtypes.NUMPY["bfloat16"]),
    "bias": np.linspace(-1.0, 1.0, 40, dtype=np.float16),
    "codes": (_CODES * 0.5).astype(np.float32),
    "flags": _RAMP[:300] % 3 == 0,
    "float32": (np.cos(_RAMP) / 8).astype(np.float32).reshape(130, 128),
    "float64": np.linspace(0.0, 1.0, 30).reshape(5, 6),
    "integers": (_RAMP[:600] % 11 - 5).reshape(30, 20),
    "trellis": (_CODES * 0.25).astype(np.float64),
    "widths": np.linspace(0.1, 4.0, 24).astype(dtypes.NUMPY["float8_e4m3fn"]),
}
BASE = TensorState(TENSORS)
"""The base of every delta that is tried."""


def _changed() -> dict[str, NDArray[np.generic]]:
    changed = {name: array.copy() for name, array in TENSORS.items()}
    for number, name in enumerate(("bfloat16", "bias", "float32", "float64", "integers", "widths")):
        words = changed[name].reshape(-1).view(f"u{changed[name].itemsize}")
        words[number :: 3 + 40 * (len(words) > 1000)] += np.uint8(1)
    changed["float32"].reshape(-1)[::2000] *= np.float32(-3.0)
    return changed | {"flags": ~TENSORS["flags"], "new": np.arange(3.0)}


def _of(tensors: dict[str, NDArray[np.generic]]) -> bytes:
    return b"".join(write_delta(TensorState(tensors), BASE, metadata={"key": "value"}).pieces())


def _of_codes() -> bytes:
    moved = _CODES + (np.arange(_CODES.size).reshape(_CODES.shape) % 9 == 0)
    with OpqFile(encode_file({"codes": stepped(moved, 0.5), "trellis": trellised_as(moved, 0.25, "float64")})) as file:
        return b"".join(write_delta(file, BASE).pieces())


SEEDS = {
    "all": _of(_changed()),
    "matrix": _of({"float32": _changed()["float32"]}),
    "small": _of({name: _changed()[name] for name in ("bias", "float64", "integers", "widths", "flags")}),
    "codes": _of_codes(),
    "same": _of(TENSORS),
}
"""{name: bytes of a delta}"""


def try_delta(data: bytes) -> bool:
    """Read a delta with `BASE` and check the laws. Returns whether it was read completely.

    The laws: only FormatError is raised, or SourceError for another base; tensors have the shape and dtype in the header; all
    at once have the same bits as one by one; what `verify` accepts can be read; `inspect_delta` reads what can be read; and the
    tensors that were read, made a delta again, come back.
    """
    content = None
    try:
        with DeltaFile(data, BASE) as file:
            if file.dense_bytes > LARGEST:
                return False
            content = _read(file)
    except (FormatError, SourceError):
        pass
    with suppress(FormatError, SourceError):
        verify(data, BASE)
        if content is None:
            raise BrokenLawError("verify accepts what cannot be read")
    if content is not None:
        inspect_delta(data)
        tensors = {name: np.frombuffer(bits, dtype=kind).reshape(shape) for name, (bits, kind, shape) in content.items()}
        with DeltaFile(b"".join(write_delta(TensorState(tensors), BASE).pieces()), BASE) as file:
            if _read(file) != content:
                raise BrokenLawError("a delta of the same tensors gives others")
    return content is not None


def _read(file: DeltaFile) -> dict[str, tuple[bytes, np.dtype[np.generic], tuple[int, ...]]]:
    one_by_one = {entry.name: file.array(entry.name) for entry in file.entries}
    for entry in file.entries:
        array = one_by_one[entry.name]
        if array.shape != entry.shape or array.dtype != dtypes.NUMPY[entry.dtype]:
            raise BrokenLawError(f"{entry.name!r} has another shape or dtype than in the header")
    together = file.arrays()
    if any(together[name].tobytes() != array.tobytes() for name, array in one_by_one.items()):
        raise BrokenLawError("reading all gives other bits than reading one by one")
    return {name: (array.tobytes(), array.dtype, array.shape) for name, array in one_by_one.items()}
