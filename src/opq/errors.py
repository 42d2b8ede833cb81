"""The exceptions of this library.

    OpqError
    ├── SourceError        a checkpoint that cannot be read
    ├── WeightError        a tensor that cannot be compressed as requested
    ├── ConfigError        a setting that is out of range, unknown, or contradicts another one
    │   └── TargetError    a target that is malformed or cannot be reached
    ├── PlanError          a plan that is malformed, or was made for other weights
    ├── SelectionError     a name or glob that matches no tensor
    ├── FormatError        bytes that are not a complete, valid .opq file
    ├── ModelError         a network that cannot be built
    ├── TrainingError      a training or an evaluation that cannot be run as requested
    ├── CalibrationError   a network or inputs that do not allow calibration
    ├── OutputError        a file that cannot be written
    ├── ClusterError       a cluster that cannot be used
    └── MissingExtraError  an optional dependency that is not installed

Every message is one line: it names the place and the value, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class OpqError(Exception):
    """Base class of every error that this library raises on purpose. Other processes can return them: they can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[OpqError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> OpqError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(fields)
    return error


class SourceError(OpqError):
    """A checkpoint cannot be read.

    Args:
        source: The checkpoint: a path, or words such as "tensor 'x'".
        problem: What is wrong with it.
    """

    def __init__(self, source: object, problem: str) -> None:
        super().__init__(f"cannot read {source}: {problem}")
        self.problem = problem


class WeightError(OpqError):
    """A tensor cannot be compressed as requested.

    Args:
        name: Name of the tensor.
        shape: Its shape.
        problem: What is wrong with it.
    """

    def __init__(self, name: str, shape: Iterable[int], problem: str) -> None:
        sizes = ", ".join(str(size) for size in shape)
        super().__init__(f"tensor {name!r} ({sizes}): {problem}")
        self.problem = problem

    @classmethod
    def beyond_float32(cls, name: str, shape: Iterable[int], scale: float) -> WeightError:
        """The error for a weight whose step would not be a normal float32 number.

        Args:
            name: Name of the weight.
            shape: Its shape.
            scale: Its mean magnitude.
        """
        problem = f"its mean magnitude {scale:.3g} is beyond what a float32 step can quantize; skip it with exclude=[{name!r}]"
        return cls(name, shape, problem)


class ConfigError(OpqError):
    """A setting is out of range, unknown, or contradicts another one."""


class TargetError(ConfigError):
    """A target is malformed or cannot be reached.

    Args:
        problem: What is wrong with it.
        reach: Bytes of the largest possible file if the target is above that; otherwise None.
    """

    def __init__(self, problem: str, reach: int | None = None) -> None:
        super().__init__(problem)
        self.reach = reach

    @classmethod
    def out_of_reach(cls, budget: int, smallest: int, largest: int, dense: int) -> TargetError:
        """The error for a byte budget that no plan can meet.

        Args:
            budget: The target, in bytes.
            smallest: Bytes of the smallest possible file.
            largest: Bytes of the largest possible file.
            dense: Dense bytes of the checkpoint.
        """
        return cls(
            f"a file of {budget:,} bytes (ratio {_ratio(dense, budget)}) is out of reach; reachable with the selected tensors: "
            f"{smallest:,} to {largest:,} bytes, ratios {_ratio(dense, largest)} to {_ratio(dense, smallest)}",
            largest if largest < budget else None,
        )


def _ratio(dense: int, size: int) -> str:
    return f"{dense / size:.4g}" if size > 0 else "infinite"


class PlanError(OpqError):
    """A plan is malformed, or was made for other weights.

    Args:
        problem: What is wrong with it.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"plan: {problem}")
        self.problem = problem


class SelectionError(OpqError):
    """A name or glob matches no tensor to which it could apply.

    Args:
        option: The setting that holds the glob.
        pattern: The glob.
        candidates: Names that it could match.
    """

    def __init__(self, option: str, pattern: str, candidates: Iterable[str]) -> None:
        names = list(candidates)
        shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
        super().__init__(f"{option} {pattern!r} matches no weight; there are {len(names)}: {shown or 'none'}")


class FormatError(OpqError):
    """Bytes are not a complete, valid .opq file.

    Args:
        where: The part of the file, such as "header" or "tensor 'x'", after the path of the file if it has one.
        problem: What is wrong there.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"not a valid .opq file: {where}: {problem}")
        self.where = where
        self.problem = problem


class ModelError(OpqError):
    """A network cannot be built.

    Args:
        model: How the network was named.
        problem: What is wrong.
    """

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(f"no network {model!r}: {problem}")


class TrainingError(OpqError):
    """A training or an evaluation cannot be run as requested.

    Args:
        problem: What is wrong.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class CalibrationError(OpqError):
    """A network or inputs do not allow calibration.

    Args:
        problem: What is wrong.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"calibration: {problem}")


class OutputError(OpqError):
    """A file cannot be written. A file that was at its path is unchanged.

    Args:
        path: The path.
        problem: What is wrong with it.
    """

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"cannot write {path}: {problem}")


class ClusterError(OpqError):
    """A cluster cannot be used.

    Args:
        problem: What is wrong, and what to do.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"Ray: {problem}")


class MissingExtraError(OpqError):
    """An optional dependency is not installed.

    Args:
        what: What needs it.
        extra: The extra of this package that installs it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'opq[{extra}]'")
