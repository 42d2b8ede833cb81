"""What compressing a network of 1,000 million weights takes, and that a run that was killed goes on where it was.

Claim: 4 GB of weights in shards are compressed in less than 2 GB of memory; a run killed half way and started again takes over
what was done, and gives the same bytes.

    python benchmarks/large.py

The checkpoint is made on the spot, in a temporary folder (TMPDIR says where; 9 GB of disk go): the shapes of a language model
(hidden size 2,048, 13 layers, vocabulary 128,256), Laplace weights, float32, in shards of about 500 MB with their index. Every
row is a process of its own, run once: `plan` measures all weights and solves, `compress` does that too, and encodes.

peak_bytes  most memory the process had resident at once, as the system counts it (ru_maxrss): all of it, libraries and mapped
            pages included. The checkpoint is read, not mapped, so the system's page cache holds it, and that is not counted
work_bytes  of the work file when the run was killed
resumed     encoded weights taken over from it
"""

from __future__ import annotations

import json
import os
import signal
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

from opq.compression.journal import Journal, work_path

SEED = 0
RATIO = 10
LAYERS, HIDDEN, INNER, HEADS, VOCABULARY = 13, 2048, 8192, 512, 128_256
_SHARD = 500 * 10**6


def main() -> int:
    """Make the checkpoint, compress it twice, once with a stop; the exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A process's peak counts what its parent had when it began, so that this one must stay small.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            weights = apart.submit(make_checkpoint, folder / "checkpoint").result()
        rows = [{"case": case, "weights": weights, **row} for case, row in _measure(folder)]
    print_rows(rows)
    save_result("large", rows, seed=SEED)
    return 0


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the language model."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for part, outputs in (("q", HIDDEN), ("k", HEADS), ("v", HEADS), ("o", HIDDEN)):
            yield f"{at}.self_attn.{part}_proj.weight", (outputs, HIDDEN)
        for part in ("gate", "up"):
            yield f"{at}.mlp.{part}_proj.weight", (INNER, HIDDEN)
        yield f"{at}.mlp.down_proj.weight", (HIDDEN, INNER)
        for part in ("input", "post_attention"):
            yield f"{at}.{part}_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)


def make_checkpoint(folder: Path) -> int:
    """Write the shards and their index; how many weights they hold."""
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

    for name, shape in shapes():
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
    yield "plan", _row(*_run("plan", folder / "checkpoint", "--ratio", RATIO), None)
    whole, stopped = folder / "whole.opq", folder / "stopped.opq"
    seconds, peak = _run("compress", folder / "checkpoint", "--ratio", RATIO, "-o", whole)
    yield "compress", _row(seconds, peak, whole)
    work = work_path(stopped)
    seconds, peak = _run("compress", folder / "checkpoint", "--ratio", RATIO, "-o", stopped, kill_at=(work, whole))
    journal = Journal(work)
    resumed, work_bytes = journal.count, work.stat().st_size
    journal.close()
    yield "the same, killed half way", {**_row(seconds, peak, None), "work_bytes": work_bytes}
    seconds, peak = _run("compress", folder / "checkpoint", "--ratio", RATIO, "-o", stopped)
    same = whole.read_bytes() == stopped.read_bytes() and not work.exists()
    yield "the same, started again", {**_row(seconds, peak, stopped), "resumed": resumed, "same_bytes": same}
    for verb in ("inspect", "verify"):
        yield verb, _row(*_run(verb, whole), whole)


def _row(seconds: float, peak: int, file: Path | None) -> Row:
    size = file.stat().st_size if file else None
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "file_bytes": size,
        "work_bytes": None,
        "resumed": None,
        "same_bytes": None,
    }


def _run(*arguments: object, kill_at: tuple[Path, Path] | None = None) -> tuple[float, int]:
    """Seconds and peak bytes of an opq process, killed, if asked, when the first file has half the size of the second."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "opq", *map(str, arguments)], stdout=subprocess.DEVNULL)
    if kill_at:
        growing, whole = kill_at
        half = whole.stat().st_size // 2
        while process.poll() is None and not (growing.exists() and growing.stat().st_size >= half):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != (-signal.SIGKILL if kill_at else 0):
        raise SystemExit(f"opq {arguments[0]} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(main())
