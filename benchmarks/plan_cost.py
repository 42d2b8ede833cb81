"""The time of planning compared with the time of loading the weights, and how it grows with their number.

Claim: a joint plan for a network of ResNet-50's size takes about as long as reading its checkpoint from the disk. A two-stage
plan, with Lambert's W for each channel, takes about a third more, and the whole rate-distortion curve less than a second. The
time is proportional to the number of weights, up to 1,000 million.

    python benchmarks/plan_cost.py

The tensors have the names and shapes of ResNet-50 (25.56 million parameters). Weights are random, from a Laplace density of
scale 1/sqrt(fan in), float32. There are seven rounds, in each of which every case runs once; results are medians. One more
round goes first and is not counted, so that imports are not counted. The networks larger than ResNet-50 consist of 4096 x 4096
matrices, normal, float32, and are planned three times.

load        safetensors.numpy.load_file, the file in the system's page cache
load_cold   the same after the file was dropped from that cache
torch_load  torch.load of the same tensors in a .pt file, in the page cache; only if PyTorch is installed
plan        opq.plan(state, ratio=20), the tensors in memory
plan_paper  opq.plan(state, sparsity=0.9, bits=3), the two-stage plan, the tensors in memory
curve       opq.rd_curve(state), eleven ratios, the tensors in memory
plan_from_path  opq.plan(path, ratio=20), reading included, the file in the page cache
compress    opq.compress(state, ratio=20), the tensors in memory
plan N M    opq.plan(state, ratio=20) of N million weights, the tensors in memory
over_load, over_load_cold, over_torch_load  seconds of a case divided by those of this method of loading
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from harness import Case, Row, Timing, load, measure_seconds, print_rows, save_result
from numpy.typing import NDArray

import opq

SEED = 0
REPEATS = 7
RATIO = 20.0
SIDE = 4096
MATRICES = (6, 24, 60)
"""Numbers of matrices in the networks larger than ResNet-50: 101, 403 and 1,007 million weights."""
SPARSITY, BITS = 0.9, 3.0

# Width of the inner convolutions and number of blocks of each stage; a block's output is four times as wide.
_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
_PARAMETERS = 25_557_032

Shapes = Iterator[tuple[str, tuple[int, ...]]]
State = Mapping[str, NDArray[Any]]


def main() -> int:
    """Time planning and loading; the exit status."""
    state = random_state()
    libraries = ("torch",) if find_spec("torch") else ()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.safetensors"
        safetensors.numpy.save_file(dict(state), path)
        cases = _cases(state, path)
        if libraries:
            cases["torch_load"] = _torch_case(state, path.with_suffix(".pt"))
        seconds = measure_seconds(cases, REPEATS)
    rows = _rows(seconds, _share_of_target(state))
    rows += [{**dict.fromkeys(rows[0]), **_growth_row(count)} for count in MATRICES]
    print_rows(rows)
    save_result("plan_cost", rows, seed=SEED, libraries=libraries)
    return 0


def resnet50_shapes() -> Shapes:
    """Name and shape of every tensor in ResNet-50's state dict: 161 parameters, and the batch-norm buffers."""
    yield from _convolution("conv1", "bn1", 64, 3, 7)
    channels = 64
    for stage, (width, blocks) in enumerate(_STAGES, start=1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            yield from _convolution(f"{at}.conv1", f"{at}.bn1", width, channels, 1)
            yield from _convolution(f"{at}.conv2", f"{at}.bn2", width, width, 3)
            yield from _convolution(f"{at}.conv3", f"{at}.bn3", 4 * width, width, 1)
            if block == 0:
                yield from _convolution(f"{at}.downsample.0", f"{at}.downsample.1", 4 * width, channels, 1)
            channels = 4 * width
    yield "fc.weight", (1000, channels)
    yield "fc.bias", (1000,)


def random_state() -> dict[str, NDArray[Any]]:
    """Random tensors of ResNet-50's shapes: Laplace weights, and batch-norm values like those of a trained network."""
    random = np.random.default_rng(SEED)
    state: dict[str, NDArray[Any]] = {}
    for name, shape in resnet50_shapes():
        if len(shape) > 1:
            state[name] = random.laplace(scale=math.prod(shape[1:]) ** -0.5, size=shape).astype(np.float32)
        elif name.endswith("num_batches_tracked"):
            state[name] = np.asarray(100_000, dtype=np.int64)
        elif name.endswith(("bias", "running_mean")):
            state[name] = random.normal(scale=0.1, size=shape).astype(np.float32)
        else:
            state[name] = random.uniform(0.5, 1.5, size=shape).astype(np.float32)
    parameters = sum(array.size for name, array in state.items() if not name.endswith(("_mean", "_var", "_tracked")))
    if parameters != _PARAMETERS:
        raise ValueError(f"expected {_PARAMETERS:,} parameters, got {parameters:,}")
    return state


def _convolution(convolution: str, norm: str, outputs: int, inputs: int, size: int) -> Shapes:
    """A convolution without bias, and the batch norm that follows it."""
    yield f"{convolution}.weight", (outputs, inputs, size, size)
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{norm}.{part}", (outputs,)
    yield f"{norm}.num_batches_tracked", ()


def _cases(state: State, path: Path) -> dict[str, Case]:
    return {
        "load": Case(lambda: load(path)),
        "load_cold": Case(lambda: load(path), before=lambda: drop_from_cache(path)),
        "plan": Case(lambda: opq.plan(state, ratio=RATIO)),
        "plan_paper": Case(lambda: opq.plan(state, sparsity=SPARSITY, bits=BITS)),
        "curve": Case(lambda: opq.rd_curve(state)),
        "plan_from_path": Case(lambda: opq.plan(path, ratio=RATIO)),
        "compress": Case(lambda: opq.compress(state, ratio=RATIO)),
    }


def drop_from_cache(path: Path) -> None:
    """Drop a file from the page cache, so that it is read from the disk again."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)  # only what the disk holds can be dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _torch_case(state: State, path: Path) -> Case:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    return Case(lambda: torch.load(path, weights_only=True))


def _share_of_target(state: State) -> float:
    compressed = opq.compress(state, ratio=RATIO)
    return compressed.file_bytes / math.floor(compressed.dense_bytes / RATIO)


def _rows(seconds: Mapping[str, Timing], share_of_target: float) -> list[Row]:
    loads = [name for name in ("load", "load_cold", "torch_load") if name in seconds]
    return [
        {
            "case": name,
            "weights": _PARAMETERS,
            "seconds": timing.median,
            "lowest": timing.lowest,
            "highest": timing.highest,
            **{f"over_{base}": timing.median / seconds[base].median for base in loads},
            "share_of_target": share_of_target if name == "compress" else None,
        }
        for name, timing in seconds.items()
    ]


def _growth_row(count: int) -> Row:
    random = np.random.default_rng(SEED)
    state = {f"layer{number}.weight": random.standard_normal((SIDE, SIDE), dtype=np.float32) for number in range(count)}
    weights = sum(array.size for array in state.values())
    name = f"plan {weights // 10**6} M"
    timing = measure_seconds({name: Case(lambda: opq.plan(state, ratio=RATIO))}, 3)[name]
    return {
        "case": name,
        "weights": weights,
        "seconds": timing.median,
        "lowest": timing.lowest,
        "highest": timing.highest,
    }


if __name__ == "__main__":
    raise SystemExit(main())
