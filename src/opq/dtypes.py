"""The supported element types: their names, their NumPy types, and their codes in the file format and names in safetensors.

Names are those of NumPy and PyTorch ("float32", "bfloat16"). Codes are part of the format and never change their meaning.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final

import ml_dtypes
import numpy as np

_TYPES: Final = (
    (0, "bool", np.bool_, "BOOL"),
    (1, "uint8", np.uint8, "U8"),
    (2, "int8", np.int8, "I8"),
    (3, "uint16", np.uint16, "U16"),
    (4, "int16", np.int16, "I16"),
    (5, "uint32", np.uint32, "U32"),
    (6, "int32", np.int32, "I32"),
    (7, "uint64", np.uint64, "U64"),
    (8, "int64", np.int64, "I64"),
    (9, "float16", np.float16, "F16"),
    (10, "bfloat16", ml_dtypes.bfloat16, "BF16"),
    (11, "float32", np.float32, "F32"),
    (12, "float64", np.float64, "F64"),
    (13, "float8_e4m3fn", ml_dtypes.float8_e4m3fn, "F8_E4M3"),
    (14, "float8_e5m2", ml_dtypes.float8_e5m2, "F8_E5M2"),
    (15, "complex64", np.complex64, "C64"),
    (16, "float8_e8m0fnu", ml_dtypes.float8_e8m0fnu, "F8_E8M0"),
    (17, "float8_e4m3fnuz", ml_dtypes.float8_e4m3fnuz, "F8_E4M3FNUZ"),
    (18, "float8_e5m2fnuz", ml_dtypes.float8_e5m2fnuz, "F8_E5M2FNUZ"),
    (19, "float4_e2m1fn", ml_dtypes.float4_e2m1fn, "F4"),
    (20, "float6_e2m3fn", ml_dtypes.float6_e2m3fn, "F6_E2M3"),
    (21, "float6_e3m2fn", ml_dtypes.float6_e3m2fn, "F6_E3M2"),
    (22, "complex128", np.complex128, "C128"),
)

NUMPY: Final[dict[str, np.dtype[np.generic]]] = {name: np.dtype(kind) for _, name, kind, _ in _TYPES}
"""{name: NumPy dtype}"""

CODE: Final[dict[str, int]] = {name: code for code, name, _, _ in _TYPES}
"""{name: code in the file}"""

NAME: Final[dict[int, str]] = {code: name for code, name, _, _ in _TYPES}
"""{code in the file: name}"""

SAFETENSORS: Final[dict[str, str]] = {name: header for _, name, _, header in _TYPES}
"""{name: name in the header of a .safetensors file}. safetensors has no complex128; "C128" is only what get_dtype() returns."""

BITS: Final = {name: 8 * dtype.itemsize for name, dtype in NUMPY.items()} | {
    "float4_e2m1fn": 4,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
}
"""{name: bits of an element in a checkpoint}. NumPy holds each element of float4 and float6 in the low bits of one byte."""

COMPRESSIBLE: Final = frozenset({"float16", "bfloat16", "float32", "float64"})
"""Names of the types a weight may have."""

LARGEST: Final = {
    "float16": 65504.0,
    "bfloat16": (2.0 - 2.0**-7) * 2.0**127,
    "float32": (2.0 - 2.0**-23) * 2.0**127,
    "float64": math.inf,
}
"""{name of a type a weight may have: its largest finite value}. It is infinite for float64, which no float32 step exceeds."""


def dense_bytes(name: str, count: int) -> int:
    """Bytes of `count` elements of a dtype in a checkpoint; two float4 share a byte, and four float6 share three."""
    return -(-count * BITS[name] // 8)


@cache
def name_of(dtype: Any) -> str:
    """Name of a NumPy or torch dtype, such as "float32". Cached, because NumPy takes a microsecond to build it."""
    return getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
