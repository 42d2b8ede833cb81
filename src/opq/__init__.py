"""Pretrained networks to files many times smaller, and back: one-shot pruning and quantization, in closed form.

    import opq
    plan = opq.plan("model.safetensors", ratio=20)     # what would become of each weight
    opq.compress("model.safetensors", ratio=20).save("model.opq")

`opq.numpy` and `opq.torch` save and load tensors in the manner of safetensors. Names are loaded when first used, so that
reading a file does not pay for planning one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from opq.errors import (
    CalibrationError,
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
    from opq.codec.verify import Verification, verify
    from opq.compression.compress import CompressedModel, compress
    from opq.compression.planning import plan
    from opq.compression.rd_curve import RDPoint, rd_curve
    from opq.config import CompressionOptions
    from opq.evaluation.accuracy_search import AccuracySearchResult, compress_to_accuracy
    from opq.evaluation.evaluate import Evaluation, evaluate
    from opq.quantization.compressed_tensor import CompressedTensor
    from opq.quantization.quantizer import dequantize, fake_quantize, mask, quantize
    from opq.quantization.statistics import measure
    from opq.rate_distortion.layers import LayerConfig, LayerStatistics
    from opq.rate_distortion.plan import LayerPlan, Plan
    from opq.reporting.compare import Comparison, compare
    from opq.reporting.inspect import Inspection, inspect
    from opq.training.config import TrainingConfig
    from opq.training.finetune import FinetuneResult, finetune
    from opq.training.prepared_model import convert, prepare

_HOMES = {
    "LayerStatistics": "opq.rate_distortion.layers",
    "LayerConfig": "opq.rate_distortion.layers",
    "LayerPlan": "opq.rate_distortion.plan",
    "Plan": "opq.rate_distortion.plan",
    "Calibration": "opq.calibration.calibrate",
    "calibrate": "opq.calibration.calibrate",
    "OpqFile": "opq.codec.file_reader",
    "Verification": "opq.codec.verify",
    "verify": "opq.codec.verify",
    "CompressedModel": "opq.compression.compress",
    "CompressionOptions": "opq.config",
    "RDPoint": "opq.compression.rd_curve",
    "rd_curve": "opq.compression.rd_curve",
    "compress": "opq.compression.compress",
    "plan": "opq.compression.planning",
    "CompressedTensor": "opq.quantization.compressed_tensor",
    "dequantize": "opq.quantization.quantizer",
    "fake_quantize": "opq.quantization.quantizer",
    "mask": "opq.quantization.quantizer",
    "quantize": "opq.quantization.quantizer",
    "measure": "opq.quantization.statistics",
    "Comparison": "opq.reporting.compare",
    "compare": "opq.reporting.compare",
    "Inspection": "opq.reporting.inspect",
    "inspect": "opq.reporting.inspect",
    "Evaluation": "opq.evaluation.evaluate",
    "evaluate": "opq.evaluation.evaluate",
    "FinetuneResult": "opq.training.finetune",
    "finetune": "opq.training.finetune",
    "convert": "opq.training.prepared_model",
    "prepare": "opq.training.prepared_model",
    "TrainingConfig": "opq.training.config",
    "AccuracySearchResult": "opq.evaluation.accuracy_search",
    "compress_to_accuracy": "opq.evaluation.accuracy_search",
}
_MODULES = ("numpy", "torch")

__all__ = [
    "AccuracySearchResult",
    "Calibration",
    "CalibrationError",
    "Comparison",
    "CompressedModel",
    "CompressedTensor",
    "CompressionOptions",
    "Evaluation",
    "FinetuneResult",
    "FormatError",
    "Inspection",
    "LayerConfig",
    "LayerPlan",
    "LayerStatistics",
    "MissingExtraError",
    "ModelError",
    "OpqError",
    "OpqFile",
    "OutputError",
    "Plan",
    "PlanError",
    "RDPoint",
    "SelectionError",
    "SourceError",
    "TargetError",
    "TrainingConfig",
    "TrainingError",
    "Verification",
    "WeightError",
    "__version__",
    "calibrate",
    "compare",
    "compress",
    "compress_to_accuracy",
    "convert",
    "dequantize",
    "evaluate",
    "fake_quantize",
    "finetune",
    "inspect",
    "mask",
    "measure",
    "plan",
    "prepare",
    "quantize",
    "rd_curve",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"opq.{name}")
    else:
        raise AttributeError(f"module 'opq' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
