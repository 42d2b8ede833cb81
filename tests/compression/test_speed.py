"""The setting `speed`: which weights are coded for fast decoding."""

from __future__ import annotations

import numpy as np
import pytest

import opq
from opq.codec.fast_section import is_fast
from opq.codec.file_reader import OpqFile
from opq.codec.weight_section import split
from opq.errors import ConfigError, PlanError
from opq.rate_distortion.plan import Plan

NETWORK = {
    "matrix": np.random.default_rng(0).laplace(size=(300, 200)).astype(np.float32),
    "kernels": np.cumsum(np.random.default_rng(1).laplace(size=(40, 30, 3, 3)), axis=-1).astype(np.float32),
}


def fast_weights(data: bytes) -> set[str]:
    """The weights of a file that have fast sections."""
    with OpqFile(data) as file:
        return {entry.name for entry in file.entries if is_fast(split(file.section(entry.section), entry)[1])}


def test_balanced_takes_matrices_and_fast_takes_all():
    """By default a matrix is coded for fast decoding, and kernels are not; with "fast" both are."""
    assert fast_weights(opq.compress(NETWORK, ratio=8).data) == {"matrix"}
    assert fast_weights(opq.compress(NETWORK, ratio=8, speed="fast").data) == {"matrix", "kernels"}


@pytest.mark.parametrize("speed", ["small", "balanced", "fast"])
def test_every_speed_meets_the_target(speed):
    """The file keeps the target of its size."""
    compressed = opq.compress(NETWORK, ratio=8, speed=speed)
    assert 8.0 <= compressed.file_ratio <= 8.0 / 0.995


def test_a_plan_has_the_speed():
    """A plan keeps the speed in JSON, and its file has it; an unknown speed is refused in a config and in a plan."""
    plan = opq.plan(NETWORK, sparsity=0.5, bits=4, speed="fast")
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert fast_weights(opq.compress(NETWORK, again).data) == {"matrix", "kernels"}
    with pytest.raises(ConfigError, match="speed must be one of 'small', 'balanced', 'fast', got 'slow'"):
        opq.CompressionConfig(target=opq.Ratio(8), speed="slow")
    with pytest.raises(PlanError, match="speed must be one of"):
        Plan.from_json(plan.to_json().replace('"speed": "fast"', '"speed": "slow"'))


def test_lossless_files_take_a_speed():
    """Codes of a lossless file can be coded for fast decoding, and come back bit for bit."""
    grid = {"w": (np.round(NETWORK["matrix"] * 4) / 4).astype(np.float32)}
    data = opq.compress(grid, lossless=True, speed="fast").data
    assert fast_weights(data) == {"w"}
    assert opq.numpy.load(data)["w"].tobytes() == grid["w"].tobytes()


def test_small_is_the_smallest():
    """With equal codes "small" has the smallest file: fast sections where they are smaller, and only there."""
    random = np.random.default_rng(0)
    columns = np.round(random.laplace(size=(400, 400)) * 2.0 ** random.uniform(-1, 4, 400)) / 8  # contexts of columns help
    neighbours = np.round(4 * NETWORK["kernels"]) / 8
    grid = {"columns": columns.astype(np.float32), "neighbours": neighbours.astype(np.float32)}
    files = {speed: opq.compress(grid, lossless=True, speed=speed).data for speed in ("small", "balanced", "fast")}
    assert len(files["small"]) < len(files["fast"])
    assert len(files["small"]) <= len(files["balanced"])
    assert fast_weights(files["small"]) == {"columns"}
