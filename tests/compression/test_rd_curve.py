"""The rate-distortion curve."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import safetensors.numpy

import opq
from opq.cli import main
from opq.errors import TargetError
from opq.functional import fake_quantize


@pytest.fixture(scope="module")
def tensors():
    generator = np.random.default_rng(0)
    return {
        "a.weight": generator.laplace(0.0, 0.1, (64, 32, 3, 3)).astype(np.float32),
        "b.weight": generator.laplace(0.0, 0.02, (100, 64)).astype(np.float32),
        "b.bias": generator.normal(size=100).astype(np.float32),
    }


def test_the_curve_is_what_plans_predict(tensors):
    """The bytes of a point are those of the plan for its ratio, and its ratio is the requested one, within 1%."""
    for file_ratio, point in zip((4.0, 10.0, 20.0), opq.rd_curve(tensors, ratios=(4.0, 10.0, 20.0)), strict=True):
        assert point.ratio == pytest.approx(file_ratio, rel=0.01)
        assert point.bytes == pytest.approx(opq.plan(tensors, ratio=file_ratio).predicted_bytes, rel=0.01)


def test_smaller_files_have_a_larger_distortion(tensors):
    """Along the curve bytes and bits fall, zeros and distortion rise, and the distortion lies between 0 and 1."""
    points = opq.rd_curve(tensors)
    for before, after in pairwise(points):
        assert after.bytes < before.bytes
        assert after.bits_per_weight < before.bits_per_weight
        assert after.sparsity > before.sparsity
        assert 0.0 < before.distortion < after.distortion < 1.0


@pytest.mark.parametrize("cost", ["squared", "balanced"])
def test_the_distortion_is_close_to_the_real_one(tensors, cost):
    """The error of Laplace weights compressed at a ratio, weighted by the costs, is the predicted one, within 10%."""
    point = opq.rd_curve(tensors, ratios=[10.0], cost=cost)[0]
    plan = opq.plan(tensors, ratio=10.0, cost=cost)
    weights = {name: tensors[name] for name in plan.layers}
    scales = {name: float(np.abs(weight).mean()) for name, weight in weights.items()}
    costs = {name: 1.0 if cost == "squared" else scales[name] ** -1.5 / weight.size for name, weight in weights.items()}
    error = energy = 0.0
    for name, weight in weights.items():
        error += costs[name] * float(np.square(fake_quantize(weight, plan.layers[name]) - weight).sum())
        energy += costs[name] * float(np.square(weight).sum())
    assert point.distortion == pytest.approx(error / energy, rel=0.1)


def test_a_key_chooses_the_state_dict(tensors):
    """`key` has the meaning that it has for a plan."""
    assert opq.rd_curve({"a": tensors, "b": {"x": np.ones(3)}}, ratios=[8], key="a") == opq.rd_curve(tensors, ratios=[8])


def test_the_curve_accepts_no_target(tensors):
    """A target, ratios out of range and a curve without points are TargetErrors; an unknown keyword is a TypeError."""
    with pytest.raises(TargetError, match="ratio must not be given: the curve covers all sizes"):
        opq.rd_curve(tensors, ratio=10)
    with pytest.raises(TargetError, match="ratios must contain one that can be reached"):
        opq.rd_curve(tensors, ratios=[1e6])
    with pytest.raises(TargetError, match="lossless must not be given: the curve covers all sizes"):
        opq.rd_curve(tensors, lossless=True)
    with pytest.raises(TypeError, match=r"rd_curve\(\) got an unexpected keyword argument 'rate'; did you mean 'ratio'"):
        opq.rd_curve(tensors, rate=4)
    for ratio in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(TargetError, match="positive and finite"):
            opq.rd_curve(tensors, ratios=[ratio, 4.0])


def test_the_command_shows_the_curve(tensors, tmp_path, capsys):
    """`opq plan --curve` prints the points as a table and as JSON, and refuses options that contradict it."""
    source = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(tensors, source)
    assert main(["plan", str(source), "--curve"]) == 0
    assert "distortion" in capsys.readouterr().out
    assert main(["plan", str(source), "--curve", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(opq.rd_curve(tensors))
    assert main(["plan", str(source), "--curve", "--ratio", "10"]) == 2
    assert main(["plan", str(source), "--ratio", "10", "--plot", "x.png"]) == 2
    assert main(["plan", str(source), "--curve", "-o", str(tmp_path / "plan.json")]) == 2


def test_the_command_plots_the_curve(tensors, tmp_path, capsys):
    """`--plot` writes an image if matplotlib is installed; otherwise the error names the extra to install."""
    source, picture = tmp_path / "net.safetensors", tmp_path / "curve.png"
    safetensors.numpy.save_file(tensors, source)
    status = main(["plan", str(source), "--curve", "--plot", str(picture)])
    if status == 0:
        assert picture.read_bytes().startswith(b"\x89PNG")
    else:
        assert "opq[plot]" in capsys.readouterr().err
