"""Preparations that NNCodec needs before it is imported; importing this module makes them.

NNCodec imports torchvision, whose operators are missing if it was built for other devices. It also expects a version of torch
of three numbers, unlike "2.13.0+cpu".
"""

from __future__ import annotations

import torch

torch.__version__ = torch.__version__.split("+")[0]
# Its operators are registered as long as this object exists.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
