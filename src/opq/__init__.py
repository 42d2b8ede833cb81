"""Pretrained networks to files many times smaller, and back: one-shot pruning and quantization in closed form.

    import opq
    opq.save(model, "model.opq", ratio=20)      # a torch module, a state dict or a checkpoint's path
    opq.load(model, "model.opq")

`opq.numpy` and `opq.torch` save and load tensors in the manner of safetensors; `opq.functional` works on single weights. Names
are imported when first used, so reading a file does not import the modules that planning needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from opq.errors import (
    CalibrationError,
    ClusterError,
    ConfigError,
    FormatError,
    MissingExtraError,
    ModelError,
    OpqError,
    OutputError,
    PlanError,
    SelectionError,
    SourceError,
    TargetError,
    TrainingError,
    WeightError,
)
from opq.version import __version__

if TYPE_CHECKING:
    from opq.calibration.calibrate import Calibration, calibrate
    from opq.codec.file_reader import OpqFile
    from opq.codec.verify import Verification
    from opq.compression.compress import compress
    from opq.compression.compressed_model import CompressedModel
    from opq.compression.delta import Delta
    from opq.compression.planning import plan
    from opq.compression.rd_curve import RDPoint, rd_curve
    from opq.config import CompressionConfig, LayerConfig, Lossless, Ratio, Size, TwoStage
    from opq.evaluation.accuracy_search import AccuracySearchResult, AccuracyTrial, compress_to_accuracy
    from opq.evaluation.evaluate import Evaluation, evaluate
    from opq.quantization.codebook import LevelTable, ScaledCodebook, UniformCodebook
    from opq.quantization.compressed_tensor import CompressedTensor
    from opq.rate_distortion.layer_plan import LayerPlan
    from opq.rate_distortion.layers import LayerStatistics
    from opq.rate_distortion.plan import AuxiliaryPlan, Plan
    from opq.reporting.coded_folder import CodedFolder, save_pretrained
    from opq.reporting.compare import Comparison, compare
    from opq.reporting.diff import Difference, TensorDifference, diff
    from opq.reporting.expand import Expansion, expand
    from opq.reporting.inspect import inspect
    from opq.reporting.inspect_delta import DeltaInspection, inspect_delta
    from opq.reporting.inspection import Inspection
    from opq.reporting.report import Report, report
    from opq.reporting.verify import verify
    from opq.save_load import load, save
    from opq.training.budget.scheduler import BudgetScheduler
    from opq.training.config import TrainingConfig
    from opq.training.finetune import FinetuneResult, finetune
    from opq.training.prepared_model import PreparedModel, prepare

_MODULE_OF = {
    "Calibration": "opq.calibration.calibrate",
    "calibrate": "opq.calibration.calibrate",
    "OpqFile": "opq.codec.file_reader",
    "Verification": "opq.codec.verify",
    "verify": "opq.reporting.verify",
    "Delta": "opq.compression.delta",
    "DeltaInspection": "opq.reporting.inspect_delta",
    "inspect_delta": "opq.reporting.inspect_delta",
    "compress": "opq.compression.compress",
    "CompressedModel": "opq.compression.compressed_model",
    "plan": "opq.compression.planning",
    "RDPoint": "opq.compression.rd_curve",
    "rd_curve": "opq.compression.rd_curve",
    "CompressionConfig": "opq.config",
    "LayerConfig": "opq.config",
    "Lossless": "opq.config",
    "Ratio": "opq.config",
    "Size": "opq.config",
    "TwoStage": "opq.config",
    "AccuracySearchResult": "opq.evaluation.accuracy_search",
    "AccuracyTrial": "opq.evaluation.accuracy_search",
    "compress_to_accuracy": "opq.evaluation.accuracy_search",
    "Evaluation": "opq.evaluation.evaluate",
    "evaluate": "opq.evaluation.evaluate",
    "LevelTable": "opq.quantization.codebook",
    "ScaledCodebook": "opq.quantization.codebook",
    "UniformCodebook": "opq.quantization.codebook",
    "CompressedTensor": "opq.quantization.compressed_tensor",
    "LayerStatistics": "opq.rate_distortion.layers",
    "AuxiliaryPlan": "opq.rate_distortion.plan",
    "LayerPlan": "opq.rate_distortion.layer_plan",
    "Plan": "opq.rate_distortion.plan",
    "Comparison": "opq.reporting.compare",
    "compare": "opq.reporting.compare",
    "CodedFolder": "opq.reporting.coded_folder",
    "save_pretrained": "opq.reporting.coded_folder",
    "Difference": "opq.reporting.diff",
    "TensorDifference": "opq.reporting.diff",
    "diff": "opq.reporting.diff",
    "Expansion": "opq.reporting.expand",
    "expand": "opq.reporting.expand",
    "Inspection": "opq.reporting.inspection",
    "inspect": "opq.reporting.inspect",
    "Report": "opq.reporting.report",
    "report": "opq.reporting.report",
    "load": "opq.save_load",
    "save": "opq.save_load",
    "BudgetScheduler": "opq.training.budget.scheduler",
    "TrainingConfig": "opq.training.config",
    "FinetuneResult": "opq.training.finetune",
    "finetune": "opq.training.finetune",
    "PreparedModel": "opq.training.prepared_model",
    "prepare": "opq.training.prepared_model",
}
_MODULES = ("functional", "numpy", "torch", "transformers")

__all__ = [
    "AccuracySearchResult",
    "AccuracyTrial",
    "AuxiliaryPlan",
    "BudgetScheduler",
    "Calibration",
    "CalibrationError",
    "ClusterError",
    "CodedFolder",
    "Comparison",
    "CompressedModel",
    "CompressedTensor",
    "CompressionConfig",
    "ConfigError",
    "Delta",
    "DeltaInspection",
    "Difference",
    "Evaluation",
    "Expansion",
    "FinetuneResult",
    "FormatError",
    "Inspection",
    "LayerConfig",
    "LayerPlan",
    "LayerStatistics",
    "LevelTable",
    "Lossless",
    "MissingExtraError",
    "ModelError",
    "OpqError",
    "OpqFile",
    "OutputError",
    "Plan",
    "PlanError",
    "PreparedModel",
    "RDPoint",
    "Ratio",
    "Report",
    "ScaledCodebook",
    "SelectionError",
    "Size",
    "SourceError",
    "TargetError",
    "TensorDifference",
    "TrainingConfig",
    "TrainingError",
    "TwoStage",
    "UniformCodebook",
    "Verification",
    "WeightError",
    "__version__",
    "calibrate",
    "compare",
    "compress",
    "compress_to_accuracy",
    "diff",
    "evaluate",
    "expand",
    "finetune",
    "inspect",
    "inspect_delta",
    "load",
    "plan",
    "prepare",
    "rd_curve",
    "report",
    "save",
    "save_pretrained",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    elif name in _MODULES:
        value = import_module(f"opq.{name}")
    else:
        raise AttributeError(f"module 'opq' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
