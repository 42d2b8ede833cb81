"""Targets: what a compressed file must meet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opq.config.checks import finite_number
from opq.errors import TargetError

_LARGEST_SIZE = 2**62
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Ratio:
    """A byte target: dense bytes over file bytes.

    Args:
        ratio: 1e-9 to 1e9. Weights of equal values count once in the dense bytes.

    Raises:
        TargetError: The ratio is out of range.
    """

    ratio: float

    def __post_init__(self) -> None:
        """Check the ratio."""
        object.__setattr__(self, "ratio", finite_number("ratio", self.ratio, TargetError))
        if not 1e-9 <= self.ratio <= 1e9:
            raise TargetError(f"ratio must be positive, from 1e-9 to 1e9, got {self.ratio:g}")

    def budget(self, dense_bytes: int) -> int:
        """The largest allowed size of the file in bytes."""
        return max(math.floor(dense_bytes / self.ratio), 1)

    def __str__(self) -> str:
        return f"ratio {self.ratio:g}"


@dataclass(frozen=True)
class Size:
    """A byte target: the size of the whole file.

    Args:
        bytes: A number of bytes, or text such as "250kB" (1 kB is 1,000 bytes) or "2MiB" (1 MiB is 2^20 bytes).

    Raises:
        TargetError: The size is not a positive number of bytes.
    """

    bytes: int

    def __post_init__(self) -> None:
        """Convert the size to a number of bytes."""
        object.__setattr__(self, "bytes", parse_size(self.bytes))

    def budget(self, dense_bytes: int) -> int:
        """The largest allowed size of the file in bytes."""
        return self.bytes

    def __str__(self) -> str:
        return f"size {self.bytes:,} bytes"


@dataclass(frozen=True)
class TwoStage:
    """The target of the OPQ paper: prune to a sparsity, then quantize the kept weights to a mean width.

    Args:
        sparsity: Fraction of zeros over all weights, 0 <= sparsity < 1.
        bits: Mean nominal width of a kept weight's code, 1 < bits <= 16.

    Raises:
        TargetError: A number is not finite.
    """

    sparsity: float
    bits: float

    def __post_init__(self) -> None:
        """Check that both are finite; `rate_distortion.two_stage.allocate` checks the ranges."""
        for key in ("sparsity", "bits"):
            object.__setattr__(self, key, finite_number(key, getattr(self, key), TargetError))

    def budget(self, dense_bytes: int) -> None:
        """None: this target does not limit the bytes."""
        return

    def __str__(self) -> str:
        return f"sparsity {self.sparsity:g}, bits {self.bits:g}"


@dataclass(frozen=True)
class Lossless:
    """No loss: every tensor is restored bit for bit.

    A weight with few distinct values, such as a clustered or already quantized one, is stored as codes with a step or a table
    of levels. Every other tensor is stored as an auxiliary tensor.
    """

    def budget(self, dense_bytes: int) -> None:
        """None: this target does not limit the bytes."""
        return

    def __str__(self) -> str:
        return "lossless"


Target = Ratio | Size | TwoStage | Lossless


def target_to_dict(target: Target) -> dict[str, Any]:
    """A target as {"ratio": r}, {"bytes": n}, {"sparsity": p, "bits": b} or {"lossless": True}."""
    return {"lossless": True} if isinstance(target, Lossless) else asdict(target)


def target_from_dict(document: Any) -> Target:
    """Inverse of `target_to_dict`.

    Raises:
        TargetError: The document is anything else.
    """
    keys = set(document) if isinstance(document, Mapping) else set()
    for kind, names in ((Ratio, {"ratio"}), (Size, {"bytes"}), (TwoStage, {"sparsity", "bits"})):
        if keys == names:
            return kind(**document)
    if keys == {"lossless"} and document["lossless"] is True:
        return Lossless()
    raise TargetError(f"target must be an object with ratio, bytes, sparsity and bits, or lossless, got {document!r}")


def parse_size(size: Any) -> int:
    """Convert a size to a number of bytes.

    Args:
        size: An integer, or text: a number with an optional unit b, kB, MB, GB (powers of 1,000), KiB, MiB or GiB (powers of
            1,024), in upper or lower case.

    Returns:
        Bytes, 1 to 2^62, rounded down.

    Raises:
        TargetError: `size` is anything else.
    """
    if isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _LARGEST_SIZE:
        return size
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)", str(size).strip())
    unit = _UNITS.get(match.group(2).lower()) if match else None
    value = float(match.group(1)) * unit if match and unit else 0.0
    if not 1.0 <= value <= _LARGEST_SIZE:
        raise TargetError(f"size must be a positive number of bytes such as 250000, '250kB' or '1.5MiB', got {size!r}")
    return math.floor(value)
