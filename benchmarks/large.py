"""Time and memory of compressing a network of 1,000 million weights.

Claim: 4 GB of weights in shards are compressed in less than 2 GB of memory.

    python benchmarks/large.py
    python benchmarks/large.py --layers 1 --vocabulary 2000

The checkpoint is made first, in a temporary folder (TMPDIR names its parent; it takes 5 GB of disk): the shapes of a language
model (hidden size 2,048, 13 layers, vocabulary 128,256), Laplace weights, float32, in shards of about 500 MB with their index.
Every row is one process, run once: `plan` measures all weights and solves for thresholds and steps, `compress` does the same
and encodes. With --layers or --vocabulary the network is smaller and the result is not saved.

The recorded result has rows of an earlier version, in which an interrupted compression could be resumed. That is gone, and so
are these rows from here and from the table.

peak_bytes  largest resident memory of the process (ru_maxrss), libraries and mapped pages included. The checkpoint is read, not
            mapped, so it is in the system's page cache, which is not counted
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import safetensors.numpy
from harness import Row, print_rows, save_result

SEED = 0
RATIO = 10
LAYERS, HIDDEN, INNER, HEADS, VOCABULARY = 13, 2048, 8192, 512, 128_256
_SHARD = 500 * 10**6


def main() -> int:
    """Make the checkpoint, plan, compress, inspect and verify; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The peak of a process includes the memory of its parent when it started, so this process must stay small.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as separate:
            weights = separate.submit(make_checkpoint, folder / "checkpoint", arguments.layers, arguments.vocabulary).result()
        rows = [{"case": case, "weights": weights, **row} for case, row in _measure(folder)]
    print_rows(rows)
    if (arguments.layers, arguments.vocabulary) == (LAYERS, VOCABULARY):
        save_result("large", rows, seed=SEED)
    return 0


def shapes(layers: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the language model."""
    yield "model.embed_tokens.weight", (vocabulary, HIDDEN)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for part, outputs in (("q", HIDDEN), ("k", HEADS), ("v", HEADS), ("o", HIDDEN)):
            yield f"{at}.self_attn.{part}_proj.weight", (outputs, HIDDEN)
        for part in ("gate", "up"):
            yield f"{at}.mlp.{part}_proj.weight", (INNER, HIDDEN)
        yield f"{at}.mlp.down_proj.weight", (HIDDEN, INNER)
        for part in ("input", "post_attention"):
            yield f"{at}.{part}_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)


def make_checkpoint(folder: Path, layers: int, vocabulary: int) -> int:
    """Write the shards and their index; the number of weights."""
    folder.mkdir()
    random = np.random.default_rng(SEED)
    places: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}
    weights = 0

    def close() -> None:
        file = f"model-{len(set(places.values())):05}.safetensors"
        safetensors.numpy.save_file(shard, folder / file)
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, shape in shapes(layers, vocabulary):
        if shard and sum(array.nbytes for array in shard.values()) + 4 * np.prod(shape) > _SHARD:
            close()
        array = random.standard_exponential(shape, dtype=np.float32)
        if len(shape) > 1:
            array *= random.integers(0, 2, shape, dtype=np.int8) * np.float32(2) - np.float32(1)
            array *= np.float32(shape[1] ** -0.5)
            weights += array.size
        shard[name] = array
    close()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return weights


def _measure(folder: Path) -> Iterator[tuple[str, Row]]:
    checkpoint, file = folder / "checkpoint", folder / "network.opq"
    yield "plan", _row(*_run("plan", checkpoint, "--ratio", RATIO), None)
    yield "compress", _row(*_run("compress", checkpoint, "--ratio", RATIO, "-o", file), file)
    for command in ("inspect", "verify"):
        yield command, _row(*_run(command, file), file)


def _row(seconds: float, peak: int, file: Path | None) -> Row:
    return {"seconds": seconds, "peak_bytes": peak, "file_bytes": file.stat().st_size if file else None}


def _run(*arguments: object) -> tuple[float, int]:
    """Seconds and peak bytes of an opq process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "opq", *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"opq {arguments[0]} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(main())
