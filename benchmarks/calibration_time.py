"""Time that calibration takes, for three networks: `opq.calibrate`, and a file at an eighth of the bytes.

Checks that ResNet-18 with 128 images and MiniLM with 128 sentences take less than a minute, and SmolLM2-135M with 54 texts of
512 tokens less than ten, on two cores. ResNet-18 has random weights: what matters for the time are its shapes.

    python benchmarks/calibration_time.py [NETWORK ...]

Rows that are in benchmarks/results/calibration_time.json are made again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision_operators
from harness import keep_row
from torch import nn
from zoo_networks import NETWORKS
from zoo_networks.calibration_inputs import calibration_inputs

import opq

RATIO = 8.0
SAMPLES = 128


def _resnet18() -> tuple[nn.Module, Any]:
    torchvision_operators.declare()
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return resnet18().eval(), torch.randn(SAMPLES, 3, 224, 224)


def _minilm() -> tuple[nn.Module, Any]:
    return NETWORKS["minilm"]().module, calibration_inputs("minilm")[:SAMPLES]


def _smollm2() -> tuple[nn.Module, Any]:
    return NETWORKS["smollm2"]().module, calibration_inputs("smollm2")


CASES: Mapping[str, Callable[[], tuple[nn.Module, Any]]] = {"resnet18": _resnet18, "minilm": _minilm, "smollm2": _smollm2}


def main() -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(CASES))
    names = parser.parse_args().networks or list(CASES)
    if unknown := set(names) - set(CASES):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}")
    for name in names:
        model, inputs = CASES[name]()
        begin = time.perf_counter()
        calibration = opq.calibrate(model, inputs)
        measured = time.perf_counter()
        compressed = calibration.compress(ratio=RATIO)
        end = time.perf_counter()
        row = {
            "network": name,
            "weights": compressed.num_weights,
            "threads": torch.get_num_threads(),
            "measure_seconds": measured - begin,
            "file_seconds": end - measured,
            "file_bytes": compressed.file_bytes,
        }
        command = ["calibration_time.py", name]
        keep_row("calibration_time", row, ("network",), lambda row: list(CASES).index(row["network"]), command=command, seed=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
