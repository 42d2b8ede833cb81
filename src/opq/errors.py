"""Everything opq raises on purpose.

    OpqError
    ├── SourceError        a checkpoint that cannot be read
    ├── WeightError        a tensor that cannot be compressed as asked
    ├── ConfigError        a setting that is out of range, unknown, or contradicts another one
    │   └── TargetError    a target that is malformed, or out of reach
    ├── PlanError          a plan that is malformed, or not made for these weights
    ├── SelectionError     a name or pattern that matches no tensor
    ├── FormatError        bytes that are not a whole, valid .opq file
    ├── ModelError         a network that cannot be made
    ├── TrainingError        a training that cannot be done as asked
    ├── CalibrationError   a network that cannot be calibrated, or inputs that do not suit it
    ├── OutputError        a file that cannot be written
    └── MissingExtraError  an optional dependency that is not installed

Each class builds its own message from the facts it is given, so that every message says where, what was expected, what was
found, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable


class OpqError(Exception):
    """Base of every error of this library; catching it catches them all."""


class SourceError(OpqError):
    """A checkpoint cannot be read."""

    def __init__(self, source: object, problem: str) -> None:
        super().__init__(f"cannot read {source}: {problem}")


class WeightError(OpqError):
    """A tensor cannot be compressed as asked."""

    def __init__(self, name: str, shape: Iterable[int], problem: str) -> None:
        sizes = ", ".join(str(size) for size in shape)
        super().__init__(f"tensor {name!r} ({sizes}): {problem}")
        self.problem = problem

    @classmethod
    def beyond_float32(cls, name: str, shape: Iterable[int], scale: float) -> WeightError:
        """A weight of this mean magnitude, for which no step that a float32 holds will do."""
        return cls(
            name,
            shape,
            f"its values, of mean magnitude {scale:.3g}, are beyond what a float32 step can quantize; "
            "store it as it is with exclude",
        )


class ConfigError(OpqError):
    """A setting is out of range, unknown, or contradicts another one."""


class TargetError(ConfigError):
    """A target is malformed or out of reach; `reach` says the bytes of the largest file where that is under what was asked."""

    def __init__(self, problem: str, reach: int | None = None) -> None:
        super().__init__(problem)
        self.reach = reach

    @classmethod
    def out_of_reach(cls, asked: int, smallest: int, largest: int, dense: int) -> TargetError:
        """A byte budget outside of what any plan can give; all arguments in bytes."""
        return cls(
            f"a file of {asked:,} bytes (ratio {_ratio(dense, asked)}) is out of reach: this network, so selected, gives "
            f"{smallest:,} to {largest:,} bytes, that is ratios {_ratio(dense, largest)} to {_ratio(dense, smallest)}",
            largest if largest < asked else None,
        )


def _ratio(dense: int, size: int) -> str:
    return f"{dense / size:.4g}" if size > 0 else "infinite"


class PlanError(OpqError):
    """A plan is malformed, or was not made for these weights."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"plan: {problem}")
        self.problem = problem


class SelectionError(OpqError):
    """A name or pattern matches no tensor it could apply to."""

    def __init__(self, option: str, pattern: str, candidates: Iterable[str]) -> None:
        names = list(candidates)
        shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
        super().__init__(f"{option} {pattern!r} matches no weight; there are {len(names)}: {shown or 'none'}")


class FormatError(OpqError):
    """Bytes are not a whole, valid .opq file."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"not a valid .opq file: {where}: {problem}")
        self.problem = problem


class ModelError(OpqError):
    """A network cannot be made."""

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(f"no network {model!r}: {problem}")


class TrainingError(OpqError):
    """A training cannot be done as asked."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"finetuning: {problem}")


class CalibrationError(OpqError):
    """A network cannot be calibrated, or its inputs do not suit it."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"calibration: {problem}")


class OutputError(OpqError):
    """A file cannot be written; whatever stood at its path still does."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"cannot write {path}: {problem}")


class MissingExtraError(OpqError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'opq[{extra}]'")
