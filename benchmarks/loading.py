"""What loading a compressed network takes, against loading the dense one.

What is told: seconds from a path to torch tensors in memory, whichever way it goes.

    python benchmarks/loading.py

The tensors are those of ResNet-50 by name and shape (25.56 million parameters, 102 MB), drawn as in plan_cost.py. The dense
network lies as a .pt file and as a .safetensors file, the compressed one at file ratios 10 and 20. Every load is followed by a
look at one element of every 4096 bytes, so that what is mapped and not read yet is read. Seven rounds, every round runs every
case once; medians. Imports are not counted: a round that is not counted goes first.

cache    warm: the file is in the system's page cache; cold: it was dropped from it before
way      torch.load(weights_only=True); safetensors.torch.load_file; opq.torch.load_file
over_torch_load  seconds over those of torch.load in the same cache
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
from plan_cost import SEED, draw_state, drop_from_cache

import opq.torch

REPEATS = 7
RATIOS = (10.0, 20.0)

Tensors = Mapping[str, torch.Tensor]
Load = Callable[[Path], Tensors]


def main() -> int:
    """Time every way to load, warm and cold; the exit status."""
    state = {name: torch.from_numpy(array) for name, array in draw_state().items()}
    with tempfile.TemporaryDirectory() as folder:
        ways = _write(state, Path(folder))
        cases = {}
        for way, (path, load) in ways.items():
            run, drop = partial(_load, path, load), partial(drop_from_cache, path)
            cases[way, "warm"], cases[way, "cold"] = Case(run), Case(run, before=drop)
        seconds = measure_seconds(cases, REPEATS)
        sizes = {way: path.stat().st_size for way, (path, _) in ways.items()}
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
    """{way: (file, how it is loaded)}"""
    dense, pickled = folder / "dense.safetensors", folder / "dense.pt"
    safetensors.torch.save_file(dict(state), dense)
    torch.save(dict(state), pickled)
    ways: dict[str, tuple[Path, Load]] = {
        "torch": (pickled, lambda path: torch.load(path, weights_only=True)),
        "safetensors": (dense, safetensors.torch.load_file),
    }
    for ratio in RATIOS:
        path = folder / f"ratio{ratio:g}.opq"
        opq.torch.save_file(state, path, ratio=ratio)
        os.sync()
        ways[f"opq, ratio {ratio:g}"] = (path, opq.torch.load_file)
    return ways


def _load(path: Path, load: Load) -> float:
    tensors = load(path)
    return sum(float(tensor.reshape(-1)[:: 4096 // tensor.element_size()].double().sum()) for tensor in tensors.values())


if __name__ == "__main__":
    raise SystemExit(main())
