"""Kills a process many times while it writes a file, and checks the file.

    python tests/attacks/killing.py [--moments 200] [--seed 0]
    python tests/attacks/killing.py --finetuning [--moments 200] [--seed 0]
    python tests/attacks/killing.py --file PATH --check COMMAND -- COMMAND...

Without a command it replaces an existing file, half of the times by the command line, half in a loop that only saves, so that
kills hit the writing. With --finetuning it kills a training, resumes from its checkpoint each time, and compares with an
uninterrupted one (killing_finetuning.py). With a command it runs that: after each kill `--check` (a shell command; PATH in
$FILE) must exit with 0 unless PATH is missing. The exit status is 1 if a file is damaged or has unexpected contents.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

import opq

SAVING = """
import sys, opq
made = [opq.compress(sys.argv[1], ratio=ratio) for ratio in (6, 8)]
print("ready", flush=True)
while True:
    for compressed in made:
        compressed.save(sys.argv[2])
"""


def kill_often(
    command: Sequence[str], check: Callable[[], None], moments: int, seed: int, *, longest: float, wait: bool = False
) -> int:
    """Run `command` and kill it (SIGKILL) after a random time, `moments` times. Returns how often it was still running.

    check    called after each kill; raises if the file is damaged
    longest  seconds to wait at most before a kill
    wait     whether the time starts at the first line of output
    """
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    at_work = 0
    for _ in range(moments):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            if wait and process.stdout:
                process.stdout.readline()
            time.sleep(chance.uniform(0.0, longest))
            at_work += process.poll() is None
            process.send_signal(signal.SIGKILL)
        check()
    return at_work


def write_network(path: Path) -> None:
    """A checkpoint of some 400,000 weights."""
    random_numbers = np.random.default_rng(0)
    shapes = {"a.weight": (256, 64, 3, 3), "b.weight": (1000, 256), "a.bias": (256,)}
    safetensors.numpy.save_file({name: random_numbers.laplace(size=shape).astype("f4") for name, shape in shapes.items()}, path)


def kill_compressing(folder: Path, moments: int, seed: int, *, saving: bool) -> tuple[int, int]:
    """Kill a process that replaces a file. Returns how often it was running, and the number of remaining temporary files."""
    source, target = folder / "network.safetensors", folder / "network.opq"
    write_network(source)
    compress = [sys.executable, "-m", "opq", "compress", str(source), "--force", "-o", str(target), "--ratio"]
    wholes = [opq.compress(source, ratio=ratio).data for ratio in (6, 8)]
    start = time.perf_counter()
    subprocess.run([*compress, "6"], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    if target.read_bytes() != wholes[0]:
        raise SystemExit("opq compress gives another file than opq.compress")

    def check() -> None:
        if target.read_bytes() not in wholes:
            raise SystemExit(f"{target} is neither the old file nor the new one")

    command = [sys.executable, "-c", SAVING, str(source), str(target)] if saving else [*compress, "8"]
    at_work = kill_often(command, check, moments, seed, longest=0.1 if saving else 1.1 * seconds, wait=saving)
    return at_work, sum(1 for path in folder.iterdir() if path.suffix == ".tmp")


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finetuning", action="store_true")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--check")
    parser.add_argument("--longest", type=float, default=10.0, help="maximum seconds until a given command is killed")
    parser.add_argument("command", nargs="*")
    arguments = parser.parse_args()
    if arguments.command:
        if not arguments.file or not arguments.check:
            parser.error("a command of your own needs --file and --check")

        def check() -> None:
            environment = {**os.environ, "FILE": str(arguments.file)}
            if arguments.file.exists() and subprocess.run(arguments.check, shell=True, env=environment, check=False).returncode:  # noqa: S602
                raise SystemExit(f"{arguments.file} is not whole")

        at_work = kill_often(arguments.command, check, arguments.moments, arguments.seed, longest=arguments.longest)
        print(f"{arguments.moments} kills, {at_work} at work: {arguments.file} was whole each time")
        return 0
    if arguments.finetuning:
        from killing_finetuning import kill_finetuning  # PyTorch takes seconds to import

        with tempfile.TemporaryDirectory() as folder:
            done = kill_finetuning(Path(folder), arguments.moments, arguments.seed)
        print(
            f"finetuning: {done.kills} kills at work, {done.writing} of them while writing; {done.reached} checkpoints, each "
            f"that of the uninterrupted run after as many epochs; {done.runs} runs brought to their end, each with its bytes"
        )
        return 0
    for saving, what in ((False, "opq compress"), (True, "saving in a loop")):
        with tempfile.TemporaryDirectory() as folder:
            at_work, left = kill_compressing(Path(folder), arguments.moments // 2, arguments.seed, saving=saving)
        print(
            f"{what}: {arguments.moments // 2} kills, {at_work} at work: the old file or the new one, whole, each time; "
            f"temporary files left: {left}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
