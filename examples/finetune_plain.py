"""Finetuning in a training loop of your own: two lines more, one before it and one after.

python examples/finetune_plain.py
"""

from __future__ import annotations

import sys

import torch
from digits import load_data, make_network, top1, train
from torch import nn

import opq


def main(epochs: int = 6) -> None:
    """Train, prepare, train on; then the file holds exactly what the network computes with."""
    torch.manual_seed(0)
    x, y, test_x, test_y = load_data()
    network = make_network()
    train(network, x, y)
    print(f"dense: top-1 {top1(network, test_x, test_y):.2f}")

    plan = opq.plan(network, ratio=30)
    opq.prepare(network, plan)  # masks and steps are attached; weights round to their codebooks from now on

    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()

    # A prepared network goes on to be finetuned for no epochs at all: what is left is the file, within its budget.
    batches = list(zip(x.split(50), y.split(50), strict=True))
    finetuned = opq.finetune(network, batches, epochs=0, budget=plan.dense_bytes // 30)
    print(f"finetuned: top-1 {top1(network, test_x, test_y):.2f}; {finetuned}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
