"""Time and memory of training a prepared network compared with a plain one.

Claim: a step of a prepared network, with fixed masks or with masks that are updated, takes at most 1.10 of the time of a plain
one and at most 1.15 of its peak memory.

    python benchmarks/finetune_cost.py

ResNet-20 on random images of CIFAR's size, batches of 128, SGD with momentum, bfloat16 autocast if it is faster. Seconds are
those of a step: the networks take turns, one step each, and results are medians of STEPS. The search for new mask thresholds,
about 60 times in a training, is not included. Bytes are the largest resident memory of a process that trains one of them,
minus its memory before it made the network. If there is a CUDA device, ResNet-50 is measured there, on images of ImageNet's
size, with the peak that CUDA's allocator reports. If the claim fails, the script prints that and exits 0, since a busy machine
can cause it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Row, print_rows, save_result, summarize
from networks.resnet_cifar import resnet20
from torch import nn
from torch.nn import functional

import opq
from opq.training.budget.mask_threshold import MaskThresholds
from opq.training.device import autocast, to_channels_last

STEPS, WARM_UP = 60, 5
MOST_TIME, MOST_MEMORY = 1.10, 1.15
KINDS = ("plain", "prepared", "open")
"""A plain network, a prepared one with fixed masks, and a prepared one whose masks are updated."""

SEED = 0


def make(network: str, device: str, kind: str) -> tuple[nn.Module, Callable[[], None]]:
    """A network of one of KINDS, and a function that takes one step of its training."""
    torch.manual_seed(SEED)
    if network == "resnet20":
        model: nn.Module = resnet20()
        batch, side, classes = 128, 32, 10
    else:
        import torchvision

        model = torchvision.models.resnet50()
        batch, side, classes = 64, 224, 1000
    if kind != "plain":
        prepared = opq.prepare(model, ratio=20)
        if kind == "open":
            MaskThresholds(prepared.weights).begin()
    model.to(device).train()
    to_channels_last(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), device=device)

    def step() -> None:
        with autocast(torch.device(device)):
            outputs = model(inputs)
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(outputs.float(), labels).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return model, step


def seconds_per_step(network: str, device: str) -> dict[str, float]:
    """Median seconds of a step of each kind, measured in turns."""
    steps = {kind: make(network, device, kind)[1] for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(-WARM_UP, STEPS):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 0:
                times[kind].append(time.perf_counter() - start)
    return {kind: summarize(taken).median for kind, taken in times.items()}


def peak_bytes(network: str, device: str, kind: str) -> int:
    """Peak memory of a training in its own process."""
    command = [sys.executable, __file__, "--peak", network, device, kind]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(network: str, device: str, kind: str) -> int:
    """Peak memory of a training in this process, minus its memory before."""
    opq.plan({"weight": torch.randn(64, 64)}, ratio=4)  # the imports of planning are not part of training
    before = _status("VmRSS")
    _, step = make(network, device, kind)
    for _ in range(WARM_UP):
        step()
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM") - before


def _status(key: str) -> int:
    # ru_maxrss would begin with the peak of the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def main() -> int:
    """Measure; the exit status."""
    if sys.argv[1:2] == ["--peak"]:
        print(measure_peak(sys.argv[2], sys.argv[3], sys.argv[4]))
        return 0
    cases = [("resnet20", "cpu"), *([("resnet50", "cuda")] if torch.cuda.is_available() else [])]
    rows: list[Row] = []
    for network, device in cases:
        seconds = seconds_per_step(network, device)
        peak = {kind: peak_bytes(network, device, kind) for kind in KINDS}
        rows.append(
            {
                "network": network,
                "device": device,
                **{f"{kind}_seconds": seconds[kind] for kind in KINDS},
                "time_ratio": max(seconds["prepared"], seconds["open"]) / seconds["plain"],
                **{f"{kind}_bytes": peak[kind] for kind in KINDS},
                "memory_ratio": max(peak["prepared"], peak["open"]) / peak["plain"],
            }
        )
    print_rows(rows)
    save_result("finetune_cost", rows, seed=SEED, libraries=["torch"])
    for row in rows:
        for what, limit in (("time", MOST_TIME), ("memory", MOST_MEMORY)):
            if row[f"{what}_ratio"] > limit:
                problem = f"{row[f'{what}_ratio']:.3f} of a plain one's {what}, more than {limit:.2f}"
                print(f"NOT MET: {row['network']} on {row['device']} takes {problem}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
