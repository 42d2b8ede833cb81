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
    RecipeError,
    SelectionError,
    SourceError,
    TargetError,
    WeightError,
)
from opq.version import __version__

if TYPE_CHECKING:
    from opq.allocation.layers import LayerStatistics, Override
    from opq.allocation.plans import LayerPlan, Plan
    from opq.calibration.calibrating import Calibration, calibrate
    from opq.codec.reading import OpqFile
    from opq.codec.verification import Verification, verify
    from opq.compression import Compressed, Options, TradeoffPoint, compress, plan, tradeoff
    from opq.quantization.compressed import CompressedTensor
    from opq.quantization.quantizer import dequantize, fake_quantize, mask, quantize
    from opq.quantization.statistics import measure
    from opq.reporting.comparison import Comparison, compare
    from opq.reporting.inspection import Inspection, inspect
    from opq.training.evaluation import Evaluation, evaluate
    from opq.training.finetuning import Finetuned, finetune
    from opq.training.preparing import convert, prepare
    from opq.training.recipe import Recipe
    from opq.training.shrinking import Shrunk, shrink

_HOMES = {
    "LayerStatistics": "opq.allocation.layers",
    "Override": "opq.allocation.layers",
    "LayerPlan": "opq.allocation.plans",
    "Plan": "opq.allocation.plans",
    "Calibration": "opq.calibration.calibrating",
    "calibrate": "opq.calibration.calibrating",
    "OpqFile": "opq.codec.reading",
    "Verification": "opq.codec.verification",
    "verify": "opq.codec.verification",
    "Compressed": "opq.compression",
    "Options": "opq.compression",
    "TradeoffPoint": "opq.compression",
    "tradeoff": "opq.compression",
    "compress": "opq.compression",
    "plan": "opq.compression",
    "CompressedTensor": "opq.quantization.compressed",
    "dequantize": "opq.quantization.quantizer",
    "fake_quantize": "opq.quantization.quantizer",
    "mask": "opq.quantization.quantizer",
    "quantize": "opq.quantization.quantizer",
    "measure": "opq.quantization.statistics",
    "Comparison": "opq.reporting.comparison",
    "compare": "opq.reporting.comparison",
    "Inspection": "opq.reporting.inspection",
    "inspect": "opq.reporting.inspection",
    "Evaluation": "opq.training.evaluation",
    "evaluate": "opq.training.evaluation",
    "Finetuned": "opq.training.finetuning",
    "finetune": "opq.training.finetuning",
    "convert": "opq.training.preparing",
    "prepare": "opq.training.preparing",
    "Recipe": "opq.training.recipe",
    "Shrunk": "opq.training.shrinking",
    "shrink": "opq.training.shrinking",
}
_MODULES = ("numpy", "torch")

__all__ = [
    "Calibration",
    "CalibrationError",
    "Comparison",
    "Compressed",
    "CompressedTensor",
    "Evaluation",
    "Finetuned",
    "FormatError",
    "Inspection",
    "LayerPlan",
    "LayerStatistics",
    "MissingExtraError",
    "ModelError",
    "OpqError",
    "OpqFile",
    "Options",
    "OutputError",
    "Override",
    "Plan",
    "PlanError",
    "Recipe",
    "RecipeError",
    "SelectionError",
    "Shrunk",
    "SourceError",
    "TargetError",
    "TradeoffPoint",
    "Verification",
    "WeightError",
    "__version__",
    "calibrate",
    "compare",
    "compress",
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
    "shrink",
    "tradeoff",
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
