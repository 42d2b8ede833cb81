"""Compressing a checkpoint to a requested file ratio and expanding it again, with the command line, in about a second.

Claim: for a pretrained network and a file ratio R, `opq compress` writes a file of at most dense/R bytes and at least
0.995 dense/R, all overhead included. `opq expand` restores every tensor with its name, shape and dtype: vectors within the
error of float16, integers bit for bit, weights bit-equal to `fake_quantize` under the plan. `opq verify` accepts the file. With
a target of sparsity and bits the file has exactly the requested number of zeros.

    python benchmarks/main_job.py

Each command runs in its own process. Its seconds are those of the whole process, median of three. Exits 1 if a check fails.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from harness import RATIOS, Case, Row, checkpoints, load, measure_seconds, print_rows, save_result
from numpy.typing import NDArray

import opq

REPEATS = 3
SMALLEST_SHARE = 0.995
TWO_STAGE_TARGETS = ({"sparsity": 0.6, "bits": 4.0}, {"sparsity": 0.9, "bits": 3.0})

Tensors = Mapping[str, NDArray[Any]]
Target = Mapping[str, Any]


def main() -> int:
    """Run every network at every target; the exit status."""
    rows: list[Row] = []
    problems: list[str] = []
    for network, path in checkpoints().items():
        for target in ({"ratio": ratio} for ratio in RATIOS):
            _run(network, path, target, rows, problems)
        for target in TWO_STAGE_TARGETS:
            _run(network, path, target, rows, problems)
    print_rows(rows)
    save_result("main_job", rows, seed=None)
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _run(network: str, path: Path, target: Target, rows: list[Row], problems: list[str]) -> None:
    target_text = ", ".join(f"{key} {value:g}" for key, value in target.items())
    with tempfile.TemporaryDirectory() as folder:
        row, found = _job(network, path, target, Path(folder))
    rows.append(row)
    problems += [f"{network} at {target_text}: {problem}" for problem in found]


def _job(network: str, source: Path, target: Target, folder: Path) -> tuple[Row, list[str]]:
    """One network at one target: its row, and the checks that failed."""
    file, expanded = folder / "tmp.opq", folder / "tmp.safetensors"
    arguments = [text for key, value in target.items() for text in (f"--{key}", f"{value:g}")]
    seconds = measure_seconds(
        {
            "compress": Case(
                lambda: _opq("compress", str(source), *arguments, "-o", str(file)),
                before=lambda: file.unlink(missing_ok=True),
            ),
            "inspect": Case(lambda: _opq("inspect", str(file), "--json")),
        },
        REPEATS,
        warm_up=False,
    )
    _opq("expand", str(file), "-o", str(expanded))
    _opq("verify", str(file))
    inspection = json.loads(_opq("inspect", str(file), "--json"))
    tensors, again = load(source), load(expanded)
    compressed = opq.compress(source, **target)
    dense_bytes = sum(tensor.nbytes for tensor in tensors.values())
    budget = math.floor(dense_bytes / target["ratio"]) if "ratio" in target else None
    file_bytes = file.stat().st_size
    problems = [
        *_wrong_sizes(file_bytes, dense_bytes, budget, inspection),
        *_wrong_tensors(tensors, again, compressed.plan),
        *_wrong_zeros(again, inspection, target),
        *([] if compressed.data == file.read_bytes() else ["the library makes other bytes than the command line"]),
    ]
    row = {
        "network": network,
        "mode": "joint" if budget else "paper",
        "ratio": target.get("ratio"),
        "target_sparsity": target.get("sparsity"),
        "target_bits": target.get("bits"),
        "dense_bytes": dense_bytes,
        "file_bytes": file_bytes,
        "share_of_target": file_bytes / budget if budget else None,
        "file_ratio": dense_bytes / file_bytes,
        "nominal_ratio": inspection["nominal_ratio"],
        "sparsity": inspection["sparsity"],
        "bits_per_weight": inspection["bits_per_weight"],
        "compress_seconds": seconds["compress"].median,
        "inspect_seconds": seconds["inspect"].median,
        "verified": not problems,
    }
    return row, problems


def _opq(*arguments: str) -> str:
    """The output of a command; CalledProcessError if it fails, after its own message on stderr."""
    done = subprocess.run([sys.executable, "-m", "opq", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _wrong_sizes(file_bytes: int, dense_bytes: int, budget: int | None, inspection: Mapping[str, Any]) -> Iterator[str]:
    if budget is not None and file_bytes > budget:
        yield f"{file_bytes:,} bytes, more than the {budget:,} requested"
    if budget is not None and file_bytes < SMALLEST_SHARE * budget:
        yield f"{file_bytes:,} bytes, less than {SMALLEST_SHARE:g} of the {budget:,} requested"
    if (inspection["file_bytes"], inspection["dense_bytes"]) != (file_bytes, dense_bytes):
        yield f"inspect says {inspection['file_bytes']:,} of {inspection['dense_bytes']:,} bytes"
    spent = sum(tensor["bytes"] for tensor in inspection["tensors"]) + inspection["header_bytes"]
    if spent != file_bytes:
        yield f"inspect accounts for {spent:,} bytes of {file_bytes:,}"


def _wrong_tensors(source: Tensors, expanded: Tensors, plan: opq.Plan) -> Iterator[str]:
    """Tensors that differ from the source under the plan."""
    if set(source) != set(expanded):
        yield f"names differ: {sorted(set(source) ^ set(expanded))[:3]}"
    for name in sorted(set(source) & set(expanded)):
        before, after = source[name], expanded[name]
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            yield f"{name}: {before.dtype} {before.shape} came back as {after.dtype} {after.shape}"
            continue
        layer = plan.layers.get(name)
        if layer is not None:
            if np.asarray(opq.functional.fake_quantize(before, layer)).tobytes() != after.tobytes():
                yield f"{name}: not bit-equal to fake_quantize of the source"
        elif before.dtype.kind != "f":
            if before.tobytes() != after.tobytes():
                yield f"{name}: not bit-equal to the source"
        elif not (np.abs(after - before) <= np.maximum(2.0**-11 * np.abs(before), 2.0**-25)).all():
            yield f"{name}: not within the error of float16"


def _wrong_zeros(expanded: Tensors, inspection: Mapping[str, Any], target: Target) -> Iterator[str]:
    """Numbers of zeros that differ from those requested, or from those reported."""
    weights = [expanded[tensor["name"]] for tensor in inspection["tensors"] if tensor["kind"] == "weight"]
    count = sum(weight.size for weight in weights)
    zeros = count - sum(int(np.count_nonzero(weight)) for weight in weights)
    if "sparsity" in target and zeros != round(target["sparsity"] * count):
        yield f"{zeros:,} of {count:,} weights are zero, {round(target['sparsity'] * count):,} were requested"
    if not math.isclose(inspection["sparsity"], zeros / count, abs_tol=1e-9):
        yield f"inspect says {inspection['sparsity']:.6f} are zeros, {zeros / count:.6f} are"


if __name__ == "__main__":
    raise SystemExit(main())
