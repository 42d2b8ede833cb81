"""What NNCodec needs before it is imported; importing this does it.

NNCodec imports torchvision, which a build for other devices leaves without its operators, and takes torch's version for three
numbers, which "2.13.0+cpu" is not.
"""

from __future__ import annotations

import torch

torch.__version__ = torch.__version__.split("+")[0]
# It lives as long as its operators are to be known.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
