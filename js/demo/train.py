"""Train and compress the network of the demo page: `python js/demo/train.py` writes digits.opq. It needs MNIST (OPQ_DATA)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

import opq

HERE = Path(__file__).parent
SEED, EPOCHS, RATIO = 0, 3, 12


def make_network() -> nn.Sequential:
    """A convolutional network of 20,490 parameters for images of 28 x 28 pixels; network.js runs the same."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def load(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 28, 28) in 0..1, and labels, of "train" or "test"."""
    with np.load(Path(os.environ["OPQ_DATA"]) / "mnist" / "mnist.npz") as arrays:
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    return torch.tensor(images[:, None] / np.float32(255)), torch.tensor(labels.astype(np.int64))


def accuracy(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of images that are recognized."""
    with torch.no_grad():
        return float((torch.cat([network(part) for part in x.split(1000)]).argmax(1) == y).float().mean())


def main() -> None:
    """Train, compress, and print both accuracies."""
    torch.manual_seed(SEED)
    (x, y), test = load("train"), load("test")
    network = make_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    steps = EPOCHS * (len(x) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(100):
            dx, dy = torch.randint(-3, 4, (2,)).tolist()
            images = torch.roll(x[batch], (dy, dx), (2, 3)) * (0.7 + 0.3 * torch.rand(1))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), y[batch]).backward()
            optimizer.step()
            schedule.step()
    before = accuracy(network, *test)
    result = opq.compress(network.state_dict(), ratio=RATIO)
    (HERE / "digits.opq").write_bytes(result.data)
    opq.load(network, HERE / "digits.opq")
    print(f"{before:.2%} before, {accuracy(network, *test):.2%} of {len(result.data):,} bytes")


if __name__ == "__main__":
    main()
