"""The supported element types: their names, their NumPy types, and their codes in the file format.

Names are those of NumPy and PyTorch ("float32", "bfloat16"). Codes are part of the format and never change their meaning.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final

import ml_dtypes
import numpy as np

_TYPES: Final = (
    (0, "bool", np.bool_),
    (1, "uint8", np.uint8),
    (2, "int8", np.int8),
    (3, "uint16", np.uint16),
    (4, "int16", np.int16),
    (5, "uint32", np.uint32),
    (6, "int32", np.int32),
    (7, "uint64", np.uint64),
    (8, "int64", np.int64),
    (9, "float16", np.float16),
    (10, "bfloat16", ml_dtypes.bfloat16),
    (11, "float32", np.float32),
    (12, "float64", np.float64),
    (13, "float8_e4m3fn", ml_dtypes.float8_e4m3fn),
    (14, "float8_e5m2", ml_dtypes.float8_e5m2),
    (15, "complex64", np.complex64),
    (16, "float8_e8m0fnu", ml_dtypes.float8_e8m0fnu),
    (17, "float8_e4m3fnuz", ml_dtypes.float8_e4m3fnuz),
    (18, "float8_e5m2fnuz", ml_dtypes.float8_e5m2fnuz),
)

NUMPY: Final[dict[str, np.dtype[np.generic]]] = {name: np.dtype(kind) for _, name, kind in _TYPES}
"""{name: NumPy dtype}"""

CODE: Final[dict[str, int]] = {name: code for code, name, _ in _TYPES}
"""{name: code in the file}"""

NAME: Final[dict[int, str]] = {code: name for code, name, _ in _TYPES}
"""{code in the file: name}"""

COMPRESSIBLE: Final = frozenset({"float16", "bfloat16", "float32", "float64"})
"""Names of the types a weight may have."""

LARGEST: Final = {
    "float16": 65504.0,
    "bfloat16": (2.0 - 2.0**-7) * 2.0**127,
    "float32": (2.0 - 2.0**-23) * 2.0**127,
    "float64": math.inf,
}
"""{name of a type a weight may have: its largest finite value}. It is infinite for float64, which no float32 step exceeds."""


@cache
def name_of(dtype: Any) -> str:
    """Name of a NumPy or torch dtype, such as "float32". Cached, because NumPy takes a microsecond to build it."""
    return getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
