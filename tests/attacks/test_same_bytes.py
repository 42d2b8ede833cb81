"""The same input gives the same bytes in any process, order, sharding and library."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import opq
import opq.numpy

CHILD = """
import hashlib, os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import opq
for options in ({"ratio": 8}, {"sparsity": 0.7, "bits": 3, "auxiliary": "float16"}):
    print(hashlib.sha256(opq.compress(sys.argv[2], **options).data).hexdigest())
"""


def digests(path: Path, *, threads: int, hash_seed: str) -> list[str]:
    """Digests of the files that a new process makes from a checkpoint."""
    command = [sys.executable, "-c", CHILD, str(threads), str(path)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.slow
def test_processes_and_threads_make_no_difference(network, tmp_path):
    """Any number of processors and any hash seed give the same file."""
    save_file(network, tmp_path / "n.safetensors")
    expected = [
        hashlib.sha256(opq.compress(network, **options).data).hexdigest()
        for options in ({"ratio": 8}, {"sparsity": 0.7, "bits": 3, "auxiliary": "float16"})
    ]
    for threads, hash_seed in ((1, "0"), (2, "random")):
        assert digests(tmp_path / "n.safetensors", threads=threads, hash_seed=hash_seed) == expected


@settings(max_examples=15)
@given(st.randoms(use_true_random=False))
def test_the_order_of_tensors_makes_no_difference(chance):
    """Any order of a state dict gives the same file."""
    rng = np.random.default_rng(3)
    state = {
        f"layer{k}.{part}": rng.normal(size=size).astype("f4")
        for k in range(4)
        for part, size in (("w", (20, 30)), ("bias", 20))
    }
    names = list(state)
    chance.shuffle(names)
    assert opq.compress({name: state[name] for name in names}, ratio=6).data == opq.compress(state, ratio=6).data


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_number_of_shards_makes_no_difference(network, count, tmp_path):
    """Any number of shards gives the file of the state dict."""
    places = {name: f"s{number % count}.safetensors" for number, name in enumerate(network)}
    for file in set(places.values()):
        save_file({name: network[name] for name, place in places.items() if place == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert opq.compress(tmp_path, ratio=8).data == opq.compress(network, ratio=8).data


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64"])
def test_torch_and_numpy_make_no_difference(network, kind):
    """Torch tensors with any strides give the file of NumPy arrays of the same values."""
    torch = pytest.importorskip("torch")
    tensors = {
        name: torch.from_numpy(array).to(getattr(torch, kind)) if array.dtype == np.float32 else torch.from_numpy(array)
        for name, array in network.items()
    }
    tensors["fc.weight"] = tensors["fc.weight"].T.contiguous().T
    arrays = opq.numpy.load(opq.compress({name: tensor.reshape(-1) for name, tensor in tensors.items()}, lossless=True).data)
    arrays = {name: array.reshape(tuple(tensors[name].shape)) for name, array in arrays.items()}
    assert opq.compress(tensors, ratio=4).data == opq.compress(arrays, ratio=4).data
