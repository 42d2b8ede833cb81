"""Finetune in your own training loop: two lines before it, one line in it, one line after it.

python examples/finetune_plain.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from digits import load_data, make_network, top1, train
from torch import nn

import opq


def main(epochs: int = 6) -> None:
    """Train, prepare, finetune, and export the file, which holds exactly the weights that the loop trained."""
    torch.manual_seed(0)
    x, y, test_x, test_y = load_data()
    network = make_network()
    train(network, x, y)
    print(f"dense: top-1 {top1(network, test_x, test_y):.2f}")

    # From now on each weight is rounded to its codebook in every forward pass.
    prepared = opq.prepare(network, ratio=30)

    steps = epochs * len(torch.arange(len(y)).split(50))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    budget = opq.BudgetScheduler(prepared, optimizer, steps)  # updates masks, and keeps the codes within their bytes
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
            budget.step()
            rate.step()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.opq"
        # If the codes take more bytes than the target, some are lowered and batch-norm statistics are estimated again.
        compressed = prepared.export(x.split(50))
        compressed.save(path)
        loaded = opq.load(make_network(), path)
    print(f"finetuned: top-1 {top1(loaded, test_x, test_y):.2f}; {compressed}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
