"""The main job, end to end, in seconds: train a small network, compress it, save it, load it, and compare.

The data are scikit-learn's bundled 8x8 digits, so nothing is fetched. Run it with `make demo`, or

    python examples/digits.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import opq
import opq.torch
from opq.text_table import format_table

RATIOS = (5, 10, 20, 30)
EPOCHS = 12
SEED = 0


def make_network() -> nn.Sequential:
    """A convolutional network of 58,000 parameters for 8x8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def load_data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and labels, then test images and labels: 1,200 and 597 of them, images (n, 1, 8, 8) in 0..1."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    x = torch.tensor(images[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order])
    return x[:1200], y[:1200], x[1200:], y[1200:]


def train(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """A plain training loop."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()


@torch.no_grad()
def top1(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Percent of images whose class the network finds."""
    network.eval()
    return 100.0 * float((network(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train, then compress at several ratios and evaluate what comes back from each file."""
    torch.manual_seed(SEED)
    x, y, test_x, test_y = load_data()
    network = make_network()
    start = time.perf_counter()
    train(network, x, y)
    print(f"trained in {time.perf_counter() - start:.1f} s\n")

    state = network.state_dict()
    print(opq.plan(state, ratio=20), "\n")

    dense_bytes = sum(tensor.nbytes for tensor in state.values())
    rows = [("dense", f"{dense_bytes:,}", "1.00", "", "", f"{top1(network, test_x, test_y):.2f}", "")]
    with tempfile.TemporaryDirectory() as folder:
        for ratio in RATIOS:
            path = Path(folder) / f"digits_{ratio}x.opq"
            start = time.perf_counter()
            opq.torch.save_model(network, path, ratio=ratio)
            seconds = time.perf_counter() - start

            loaded = make_network()
            opq.torch.load_model(loaded, path)
            facts = opq.inspect(path)
            rows.append(
                (
                    path.name,
                    f"{path.stat().st_size:,}",
                    f"{facts.file_ratio:.2f}",
                    f"{facts.nominal_ratio:.2f}",
                    f"{100.0 * facts.sparsity:.1f}%",
                    f"{top1(loaded, test_x, test_y):.2f}",
                    f"{seconds:.2f}",
                )
            )
    print(format_table(("file", "bytes", "file ratio", "nominal ratio", "zeros", "top-1 %", "seconds"), rows))


if __name__ == "__main__":
    main()
