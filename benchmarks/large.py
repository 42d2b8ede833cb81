"""Time and memory of compressing a network of 1,000 million weights.

Claim: 4 GB of weights in shards are compressed in less than 2 GB of memory.

    python benchmarks/large.py
    python benchmarks/large.py --layers 1 --vocabulary 2000
    python benchmarks/large.py --ray
    python benchmarks/large.py --ray --hidden 512 --layers 4 --vocabulary 8000

The checkpoint is made first, in a temporary folder (TMPDIR names its parent; it takes 5 GB of disk): the shapes of a language
model (hidden size 2,048, inner size four times that, 13 layers, vocabulary 128,256), Laplace weights, float32, in shards of
about 500 MB with their index.
Every row is one process, run once: `plan` measures all weights and solves for thresholds and steps, `compress` does the same
and encodes. With --hidden, --layers or --vocabulary the network is smaller and the result is not saved.

With --ray the local run is compared with clusters of one, two and four workers on this machine, whose files must have the same
bytes, and results/ray.json is written, whatever the size. A cluster is started before its row is timed, and stopped after it.

peak_bytes  largest resident memory of the process (ru_maxrss), libraries and mapped pages included. The checkpoint is read, not
            mapped, so it is in the system's page cache, which is not counted. With --ray: of the driver
worker_peak_bytes  largest resident memory of a worker, looked up three times a second
speedup      seconds with one worker over seconds
cpu_seconds  of the local run: the search for the size, which encodes all weights several times, included
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from filecmp import cmp
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import safetensors.numpy
from harness import Row, print_rows, save_result

SEED = 0
RATIO = 10
LAYERS, HIDDEN, VOCABULARY = 13, 2048, 128_256
WORKERS = (1, 2, 4)
_SHARD = 500 * 10**6
_PORT = 26_379


def main() -> int:
    """Make the checkpoint, plan, compress, inspect and verify; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--ray", action="store_true", help="compare the local run with Ray workers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The peak of a process includes the memory of its parent when it started, so this process must stay small.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as separate:
            sizes = arguments.hidden, arguments.layers, arguments.vocabulary
            weights = separate.submit(make_checkpoint, folder / "checkpoint", *sizes).result()
        measured = _measure_ray(folder) if arguments.ray else _measure(folder)
        rows = [{"case": case, "weights": weights, **row} for case, row in measured]
    print_rows(rows)
    if arguments.ray:
        save_result("ray", rows, seed=SEED, libraries=("ray",))
    elif sizes == (HIDDEN, LAYERS, VOCABULARY):
        save_result("large", rows, seed=SEED)
    return 0


def shapes(hidden: int, layers: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the language model."""
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for part, outputs in (("q", hidden), ("k", hidden // 4), ("v", hidden // 4), ("o", hidden)):
            yield f"{at}.self_attn.{part}_proj.weight", (outputs, hidden)
        for part in ("gate", "up"):
            yield f"{at}.mlp.{part}_proj.weight", (4 * hidden, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, 4 * hidden)
        for part in ("input", "post_attention"):
            yield f"{at}.{part}_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def make_checkpoint(folder: Path, hidden: int, layers: int, vocabulary: int) -> int:
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

    for name, shape in shapes(hidden, layers, vocabulary):
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


def _measure_ray(folder: Path) -> Iterator[tuple[str, Row]]:
    checkpoint, local, file = folder / "checkpoint", folder / "local.opq", folder / "ray.opq"
    before = os.times()
    seconds, peak = _run("compress", checkpoint, "--ratio", RATIO, "-o", local)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    local_row = {"workers": None, "seconds": seconds, "peak_bytes": peak, "cpu_seconds": cpu}
    yield "local", {**local_row, "speedup": None, "worker_peak_bytes": None, "same_bytes": None}
    alone = None
    for workers in WORKERS:
        with _cluster(workers) as (address, peaks):
            arguments = ("compress", checkpoint, "--ratio", RATIO, "-o", file, "--force", "--ray", address)
            seconds, peak = _run(*arguments)
        alone = alone or seconds
        yield (
            "ray",
            {
                "workers": workers,
                "seconds": seconds,
                "peak_bytes": peak,
                "cpu_seconds": None,
                "speedup": alone / seconds,
                "worker_peak_bytes": max(peaks.values(), default=None),
                "same_bytes": cmp(local, file, shallow=False),
            },
        )


@contextmanager
def _cluster(workers: int) -> Iterator[tuple[str, dict[int, int]]]:
    """The address of a Ray cluster of this machine, and {process of a worker: its largest resident memory} as it is found."""
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={_PORT}"]
    options = [f"--num-cpus={workers}", "--include-dashboard=false", "--disable-usage-stats", f"--object-store-memory={10**9}"]
    own = {**os.environ, "RAY_worker_niceness": "0"}  # that of the local run; Ray's default is 15
    node = subprocess.Popen([*start, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own)
    peaks: dict[int, int] = {}
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(node.pid, peaks, ended))
    try:
        time.sleep(20)  # until it answers
        watch.start()
        yield f"127.0.0.1:{_PORT}", peaks
    finally:
        ended.set()
        watch.join()
        node.terminate()
        node.wait()
        time.sleep(5)


def _watch(node: int, peaks: dict[int, int], ended: threading.Event) -> None:
    while not ended.wait(0.3):
        for process in psutil.Process(node).children(recursive=True):
            with suppress(psutil.Error):
                if process.name().startswith("ray::") or process.cmdline()[:1] == ["ray::_run"]:
                    peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_info().rss)


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
