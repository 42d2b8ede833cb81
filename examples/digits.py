"""Train a small network in seconds, compress it to several sizes, finetune, load each file, and compare accuracies.

The data are the 8x8 digits that come with scikit-learn, so nothing is downloaded. Run it with `make demo`, or

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
from torch.utils.data import DataLoader, TensorDataset

import opq
from opq.text_table import format_table

RATIOS = (5, 10, 20, 30)
EPOCHS = 12
FINETUNING_EPOCHS = 5
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
    """1,200 training images and their labels, 597 test images and their labels; images are (n, 1, 8, 8) in 0..1."""
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
    """Percentage of images that the network classifies correctly."""
    network.eval()
    return 100.0 * float((network(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train, compress to several ratios, finetune at the last one, and evaluate what each file holds."""
    torch.manual_seed(SEED)
    x, y, test_x, test_y = load_data()
    network = make_network()
    start = time.perf_counter()
    train(network, x, y)
    print(f"trained in {time.perf_counter() - start:.1f} s\n")

    print(opq.plan(network, ratio=20), "\n")

    dense_bytes = sum(tensor.nbytes for tensor in network.state_dict().values())
    rows = [("dense", f"{dense_bytes:,}", "1.0x", "", "", f"{top1(network, test_x, test_y):.2f}", "")]

    def add_row(path: Path, compressed: opq.CompressedModel, seconds: float) -> None:
        loaded = opq.load(make_network(), path)
        rows.append(
            (
                path.name,
                f"{path.stat().st_size:,}",
                f"{compressed.file_ratio:.1f}x",
                f"{compressed.bits_per_weight:.2f}",
                f"{100.0 * compressed.sparsity:.1f}%",
                f"{top1(loaded, test_x, test_y):.2f}",
                f"{seconds:.2f}",
            )
        )

    with tempfile.TemporaryDirectory() as folder:
        for ratio in RATIOS:
            path = Path(folder) / f"digits_{ratio}x.opq"
            start = time.perf_counter()
            compressed = opq.save(network, path, ratio=ratio)
            add_row(path, compressed, time.perf_counter() - start)

        path = Path(folder) / f"digits_{RATIOS[-1]}x_finetuned.opq"
        start = time.perf_counter()
        loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
        config = opq.CompressionConfig(target=opq.Ratio(RATIOS[-1]))
        finetuned = opq.finetune(network, loader, config, opq.TrainingConfig(epochs=FINETUNING_EPOCHS), teacher="dense")
        finetuned.save(path)
        add_row(path, finetuned.compressed, time.perf_counter() - start)
    print(format_table(("file", "bytes", "smaller", "bits/weight", "zeros", "top-1 %", "seconds"), rows))


if __name__ == "__main__":
    main()
