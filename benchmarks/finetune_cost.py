"""What it costs to train a prepared network, beside a plain one.

Claim: a step of a prepared network takes at most 1.10 of the time of a plain one, and at most 1.15 of its peak memory.

    python benchmarks/finetune_cost.py

ResNet-20 on random images of CIFAR's size, batches of 128, SGD with momentum, bfloat16 autocast where it pays. Seconds are
those of a step: both networks take turns, a step each, median of STEPS. Bytes are the largest resident memory of a process that
trains one of them, less what it had before it made the network. Where there is a CUDA device, ResNet-50 is measured there, on
images of ImageNet's size, with the peak that CUDA's allocator reports. Exits 1 when a claim fails.
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
from opq.training.machines import autocast, use_fast_layout

STEPS, WARM_UP = 60, 5
MOST_TIME, MOST_MEMORY = 1.10, 1.15
SEED = 0


def make(network: str, device: str, prepared: bool) -> tuple[nn.Module, Callable[[], None]]:
    """A network and a step of its training."""
    torch.manual_seed(SEED)
    if network == "resnet20":
        model: nn.Module = resnet20()
        batch, side, classes = 128, 32, 10
    else:
        import torchvision

        model = torchvision.models.resnet50()
        batch, side, classes = 64, 224, 1000
    if prepared:
        opq.prepare(model, ratio=20)
    model.to(device).train()
    use_fast_layout(model)
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


def seconds_a_step(network: str, device: str) -> tuple[float, float]:
    """Of the plain and of the prepared network, taking turns."""
    steps = [make(network, device, prepared)[1] for prepared in (False, True)]
    times: list[list[float]] = [[], []]
    for number in range(-WARM_UP, STEPS):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if number >= 0:
                taken.append(time.perf_counter() - start)
    plain, prepared = (summarize(taken).median for taken in times)
    return plain, prepared


def peak_bytes(network: str, device: str, prepared: bool) -> int:
    """Of a process of its own."""
    command = [sys.executable, __file__, "--peak", network, device, str(int(prepared))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(network: str, device: str, prepared: bool) -> int:
    """Of this process: what training takes beyond what was there."""
    opq.plan({"weight": torch.randn(64, 64)}, ratio=4)  # what planning imports is no part of training
    before = _status("VmRSS")
    _, step = make(network, device, prepared)
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
        print(measure_peak(sys.argv[2], sys.argv[3], sys.argv[4] == "1"))
        return 0
    cases = [("resnet20", "cpu"), *([("resnet50", "cuda")] if torch.cuda.is_available() else [])]
    rows: list[Row] = []
    for network, device in cases:
        plain_seconds, prepared_seconds = seconds_a_step(network, device)
        plain_bytes, prepared_bytes = (peak_bytes(network, device, prepared) for prepared in (False, True))
        rows.append(
            {
                "network": network,
                "device": device,
                "plain_seconds": plain_seconds,
                "prepared_seconds": prepared_seconds,
                "time_ratio": prepared_seconds / plain_seconds,
                "plain_bytes": plain_bytes,
                "prepared_bytes": prepared_bytes,
                "memory_ratio": prepared_bytes / plain_bytes,
            }
        )
    print_rows(rows)
    save_result("finetune_cost", rows, seed=SEED, libraries=["torch"])
    return int(any(row["time_ratio"] > MOST_TIME or row["memory_ratio"] > MOST_MEMORY for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
