"""Functions on single weights, NumPy arrays and torch tensors alike: measure, quantize, dequantize, fake_quantize and mask.

plan = opq.plan(state_dict, ratio=20).layers["conv1.weight"]
codes = opq.functional.quantize(weight, plan)
"""

from opq.quantization.quantizer import dequantize, fake_quantize, mask, quantize
from opq.quantization.statistics import measure

__all__ = ["dequantize", "fake_quantize", "mask", "measure", "quantize"]
