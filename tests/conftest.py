"""Settings and data that all tests share."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, settings

# A law that asks for a number of examples gets its share of a hundred (thoroughness.py).
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=100)
settings.register_profile("default", deadline=None, print_blob=True, max_examples=20)
settings.register_profile("fast", deadline=None, max_examples=10)
settings.register_profile("ci", deadline=None, print_blob=True, max_examples=20, derandomize=True)
# For mutants, whose tests must fail: the same examples each time, and no search for a smaller one.
settings.register_profile("mutants", deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def read_only_network() -> dict[str, np.ndarray]:
    """A state dict like a small convolutional network's: weights, batch-norm, a bias, an integer counter."""
    rng = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}
    for name, shape, scale in (
        ("conv1", (16, 3, 3, 3), 0.2),
        ("layer1.conv", (32, 16, 3, 3), 0.08),
        ("layer2.conv", (64, 32, 3, 3), 0.03),
    ):
        state[f"{name}.weight"] = rng.laplace(scale=scale, size=shape).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}_bn.{part}"] = rng.uniform(0.5, 1.5, shape[0]).astype(np.float32)
        state[f"{name}_bn.num_batches_tracked"] = np.array(1234, dtype=np.int64)
    state["fc.weight"] = rng.normal(scale=0.1, size=(10, 64)).astype(np.float32)
    state["fc.bias"] = rng.normal(size=10).astype(np.float32)
    for array in state.values():
        array.flags.writeable = False
    return state


@pytest.fixture
def network(read_only_network) -> dict[str, np.ndarray]:
    """The same, for a test to change."""
    return {name: array.copy() for name, array in read_only_network.items()}


@pytest.fixture
def data_folder() -> Path:
    """The folder of real weights; tests that use it are skipped if it is missing."""
    folder = Path(os.environ.get("OPQ_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "weights").is_dir():
        pytest.skip("real weights are not here; set OPQ_DATA")
    return folder


TORCHVISION_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor d, Tensor s, float t) -> Tensor",
)


@pytest.fixture(scope="session")
def torchvision():
    """The torchvision package. If it was built for another torch, two operators must be declared first."""
    torch = pytest.importorskip("torch")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in TORCHVISION_OPERATORS:
        with contextlib.suppress(RuntimeError):  # it is declared
            library.define(schema)
    yield pytest.importorskip("torchvision")
    library._destroy()


@pytest.fixture
def one_thread():
    """One thread in torch, which is fastest on small networks and makes results repeat bit for bit."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
