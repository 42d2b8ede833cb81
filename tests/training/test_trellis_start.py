"""Training that starts from weights that follow a trellis: each weight is rounded alone, with two steps of the codebook."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import opq
from opq.training.attach import prepared_weights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))


def test_a_plan_with_a_trellis_rounds_each_weight_alone():
    """Steps are twice those of the plan, and values the multiples of them that are nearest to the dense weights."""
    model = network()
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = opq.plan(model, ratio=8)
    assert all(layer.is_trellis for layer in plan.layers.values())
    opq.prepare(model, plan, reserve=0.0)
    for weight in prepared_weights(model):
        step = np.float32(2.0 * plan.layers[weight.names[0]].step)
        assert weight.codebook.step == step
        nearest = np.sign(dense[weight.names[0]].numpy()) * np.floor(np.abs(dense[weight.names[0]].numpy()) / step + 0.5)
        assert np.array_equal(weight.tensor().codes, nearest.astype(np.int32))
        assert not weight.tensor().trellis


def test_a_file_with_a_trellis_starts_near_its_values():
    """Steps are twice those of the file, masks are codes that are not 0, and no value moves by more than a step of the file."""
    data = opq.compress(network(), ratio=8).data
    model = network()
    prepared = opq.prepare(model, data)
    with opq.OpqFile(data) as file:
        for weight in prepared_weights(model):
            tensor, own = file[weight.names[0]], weight.tensor()
            assert tensor.trellis
            assert own.codebook.step == 2.0 * tensor.codebook.step
            assert np.array_equal(own.codes, tensor.without_trellis.codes)
            assert np.array_equal(weight.codebook.mask.numpy(), own.codes != 0)
            assert np.abs(own.values() - tensor.values()).max() <= tensor.codebook.step * 1.0001
    assert prepared.encode().file_bytes < 1.1 * len(data)


class HalfUsed(nn.Module):
    """A network whose outputs do not depend on one of two weights."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, inputs):
        return self.used(inputs)


def test_calibration_has_no_trellis():
    """Calibrated weights are rounded by their curvature, and those that the outputs do not depend on are compensated."""
    torch.manual_seed(1)
    model = HalfUsed().eval()
    data = opq.calibrate(model, torch.randn(256, 6) @ torch.randn(6, 64)).compress(ratio=8).data
    alone = opq.compress(model, ratio=8).data
    with opq.OpqFile(data) as file, opq.OpqFile(alone) as other:
        assert [file[f"{name}.weight"].trellis for name in ("used", "unused")] == [False, False]
        assert [other[f"{name}.weight"].trellis for name in ("used", "unused")] == [True, True]
