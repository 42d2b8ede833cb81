"""Targets: what is asked of a file."""

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
        ratio: From 1e-9 to 1e9. A weight that modules share counts once in the dense bytes.
    """

    ratio: float

    def __post_init__(self) -> None:
        """Raise TargetError when the ratio is out of range."""
        object.__setattr__(self, "ratio", finite_number("ratio", self.ratio, TargetError))
        if not 1e-9 <= self.ratio <= 1e9:
            raise TargetError(f"ratio must be positive, from 1e-9 to 1e9, got {self.ratio:g}")

    def budget(self, dense_bytes: int) -> int:
        """The most bytes the file may have."""
        return max(math.floor(dense_bytes / self.ratio), 1)

    def __str__(self) -> str:
        return f"ratio {self.ratio:g}"


@dataclass(frozen=True)
class Size:
    """A byte target: the size of the whole file.

    Args:
        bytes: A number of bytes, or text such as "250kB" (1 kB is 1,000 bytes) or "2MiB" (1 MiB is 2^20 bytes).
    """

    bytes: int

    def __post_init__(self) -> None:
        """Raise TargetError when the size is not a positive number of bytes."""
        object.__setattr__(self, "bytes", parse_size(self.bytes))

    def budget(self, dense_bytes: int) -> int:
        """The most bytes the file may have."""
        return self.bytes

    def __str__(self) -> str:
        return f"size {self.bytes:,} bytes"


@dataclass(frozen=True)
class TwoStage:
    """The target of the OPQ paper: prune to a sparsity, then quantize what is kept to a mean width.

    Args:
        sparsity: Fraction of zeros over all weights, 0 <= sparsity < 1.
        bits: Mean nominal width of a kept weight's code, 1 < bits <= 16.
    """

    sparsity: float
    bits: float

    def __post_init__(self) -> None:
        """Raise TargetError when a number is not finite; ranges are checked where the weights are known."""
        for key in ("sparsity", "bits"):
            object.__setattr__(self, key, finite_number(key, getattr(self, key), TargetError))

    def budget(self, dense_bytes: int) -> None:
        """None: this target says nothing about bytes."""
        return

    def __str__(self) -> str:
        return f"sparsity {self.sparsity:g}, bits {self.bits:g}"


@dataclass(frozen=True)
class Lossless:
    """No loss: every tensor comes back bit for bit.

    A weight with few distinct values, as clustering or quantization elsewhere leaves it, is stored as codes with a step or a
    table of levels. Every other tensor is stored as an auxiliary tensor.
    """

    def budget(self, dense_bytes: int) -> None:
        """None: the size follows from the tensors."""
        return

    def __str__(self) -> str:
        return "lossless"


Target = Ratio | Size | TwoStage | Lossless


def target_to_dict(target: Target) -> dict[str, Any]:
    """{"ratio": r}, {"bytes": n}, {"sparsity": p, "bits": b} or {"lossless": True}."""
    return {"lossless": True} if isinstance(target, Lossless) else asdict(target)


def target_from_dict(document: Any) -> Target:
    """The target of what `target_to_dict` gave; TargetError for anything else."""
    keys = set(document) if isinstance(document, Mapping) else set()
    for kind, names in ((Ratio, {"ratio"}), (Size, {"bytes"}), (TwoStage, {"sparsity", "bits"})):
        if keys == names:
            return kind(**document)
    if keys == {"lossless"} and document["lossless"] is True:
        return Lossless()
    raise TargetError(f"target must be an object with ratio, bytes, sparsity and bits, or lossless, got {document!r}")


def parse_size(size: Any) -> int:
    """Bytes from an integer or from text such as "250kB"; TargetError for anything else."""
    if isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _LARGEST_SIZE:
        return size
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)", str(size).strip())
    unit = _UNITS.get(match.group(2).lower()) if match else None
    value = float(match.group(1)) * unit if match and unit else 0.0
    if not 1.0 <= value <= _LARGEST_SIZE:
        raise TargetError(f"size must be a positive number of bytes such as 250000, '250kB' or '1.5MiB', got {size!r}")
    return math.floor(value)
