"""The time of loading a compressed network compared with the time of loading the dense one.

It measures the seconds from a path to torch tensors in memory.

    python benchmarks/loading.py

The tensors have the names and shapes of ResNet-50 (25.56 million parameters, 102 MB), with random values as in plan_cost.py.
The dense network is stored as a .pt file and as a .safetensors file, the compressed one at file ratios 10 and 20. After every
load one element of every 4096 bytes is read, so that memory-mapped pages are read too. There are seven rounds, in each of
which every case runs once; results are medians. One more round goes first and is not counted, so that imports are not counted.

cache    warm: the file is in the system's page cache; cold: it was dropped from the cache before
way      torch.load(weights_only=True); safetensors.torch.load_file; opq.torch.load_file
over_torch_load  seconds divided by those of torch.load with the same cache
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from harness import Case, Row, measure_seconds, print_rows, save_result
from plan_cost import SEED, drop_from_cache, random_state

import opq.torch

REPEATS = 7
RATIOS = (10.0, 20.0)

Tensors = Mapping[str, torch.Tensor]
Load = Callable[[Path], Tensors]


def main() -> int:
    """Time every loader, warm and cold; the exit status."""
    state = {name: torch.from_numpy(array) for name, array in random_state().items()}
    with tempfile.TemporaryDirectory() as folder:
        loaders = _write(state, Path(folder))
        cases = {}
        for way, (path, load) in loaders.items():
            run, drop = partial(_load, path, load), partial(drop_from_cache, path)
            cases[way, "warm"], cases[way, "cold"] = Case(run), Case(run, before=drop)
        seconds = measure_seconds(cases, REPEATS)
        sizes = {way: path.stat().st_size for way, (path, _) in loaders.items()}
    rows: list[Row] = [
        {
            "way": way,
            "cache": cache,
            "file_bytes": sizes[way],
            "seconds": timing.median,
            "lowest": timing.lowest,
            "highest": timing.highest,
            "over_torch_load": timing.median / seconds["torch", cache].median,
        }
        for (way, cache), timing in seconds.items()
    ]
    print_rows(rows)
    save_result("loading", rows, seed=SEED, libraries=("torch",))
    return 0


def _write(state: Tensors, folder: Path) -> dict[str, tuple[Path, Load]]:
    """{name of a loader: (its file, the loader)}"""
    dense, pickled = folder / "dense.safetensors", folder / "dense.pt"
    safetensors.torch.save_file(dict(state), dense)
    torch.save(dict(state), pickled)
    loaders: dict[str, tuple[Path, Load]] = {
        "torch": (pickled, lambda path: torch.load(path, weights_only=True)),
        "safetensors": (dense, safetensors.torch.load_file),
    }
    for ratio in RATIOS:
        path = folder / f"ratio{ratio:g}.opq"
        opq.torch.save_file(state, path, ratio=ratio)
        os.sync()
        loaders[f"opq, ratio {ratio:g}"] = (path, opq.torch.load_file)
    return loaders


def _load(path: Path, load: Load) -> float:
    tensors = load(path)
    return sum(float(tensor.reshape(-1)[:: 4096 // tensor.element_size()].double().sum()) for tensor in tensors.values())


if __name__ == "__main__":
    raise SystemExit(main())
