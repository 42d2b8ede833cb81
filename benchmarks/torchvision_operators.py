"""Operators that torchvision declares, for one that was built for another torch: it does not import without them."""

from __future__ import annotations

import torch

_SCHEMAS = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor d, Tensor s, float t) -> Tensor")
_library = torch.library.Library("torchvision", "FRAGMENT")


def declare() -> None:
    """Declare the operators, unless they are declared. They cannot be called."""
    for schema in _SCHEMAS:
        try:
            _library.define(schema)
        except RuntimeError:
            return
