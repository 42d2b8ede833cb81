"""The field's oldest table: LeNet-300-100 and LeNet-5 on MNIST, in the bytes of the real file.

Claim: with a 150th of its bytes LeNet-300-100 makes fewer errors than Deep Compression's with a 40th (S. Han, H. Mao, W. Dally,
2015: 1.58%; LeNet-5 0.74% with a 39th). How far both are from their own dense networks, and LeNet-5 at a 400th, the rows say.

    python benchmarks/mnist.py
    python benchmarks/mnist.py lenet-5 --ratios 400 --seeds 0 1 2

The dense network is trained on distorted images until it gets no better; it is the teacher of all that follows, and each ratio
begins at it: `opq.finetune`, half of every batch distorted, half as it is. `epochs` and `seconds` are those of that training,
after `dense_epochs`.

Every training keeps its checkpoints in the folder that OPQ_RUNS names, by default runs/out, and goes on from there; a row
is put into results/mnist.json as soon as it is done. OPQ_CACHE names the folder for distorted images.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from handwriting import Handwriting, TestImages
from harness import ROOT, Row, keep_row
from networks.lenet import lenet_5, lenet_300_100
from torch import nn

import opq
import opq.torch
from opq.training.checkpoints import RunFolder
from opq.training.loop import Training

MAKERS: Mapping[str, Callable[[], nn.Module]] = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5}


CASES: Mapping[str, Mapping[int, int]] = {
    "lenet-300-100": {40: 18, 80: 24, 150: 36, 200: 36},
    "lenet-5": {40: 8, 108: 12, 200: 16, 400: 20},
}
"""{network: {file ratio: epochs}}"""
DENSE_EPOCHS: Mapping[str, int] = {"lenet-300-100": 60, "lenet-5": 24}
DENSE_RECIPE = opq.Recipe(learning_rate=1.5e-3, weight_decay=0.01, warm_up=0.01, optimizer=torch.optim.AdamW)
RECIPE = opq.Recipe(learning_rate=1e-3, weight_decay=0.0, warm_up=0.02, labels=0.3, temperature=2.0, optimizer=torch.optim.Adam)
GRID = 16
"""Biases are multiples of 1/16, and rest."""


class Series:
    """One network from one seed: the dense one, then every case."""

    def __init__(self, network: str, seed: int, folder: Path) -> None:
        self.network, self.seed, self.folder = network, seed, folder / f"{network}_{seed}"
        self.test = TestImages()
        self.dense = self._dense()
        self.dense_top1 = self._top1(self.dense)
        self.loader = Handwriting(distorted=0.5)

    def row(self, ratio: int) -> Row:
        """Train at one file ratio."""
        finetuned = self._compressed(ratio)
        facts = opq.inspect(finetuned.compressed.data)
        return {
            "network": self.network,
            "seed": self.seed,
            "ratio": ratio,
            "file_ratio": facts.file_ratio,
            "file_bytes": facts.file_bytes,
            "nominal_ratio": facts.nominal_ratio,
            "sparsity": facts.sparsity,
            "dense_top1": self.dense_top1,
            "top1": self._top1(opened(self.network, finetuned.compressed.data)),
            "dense_epochs": DENSE_EPOCHS[self.network],
            "epochs": len(finetuned.history),
            "seconds": sum(row["seconds"] for row in finetuned.history),
        }

    def _dense(self) -> nn.Module:
        torch.manual_seed(self.seed)
        model = MAKERS[self.network]()
        loader = Handwriting(distorted=1.0)
        folder = RunFolder(self.folder / "dense")
        Training(model, loader, DENSE_EPOCHS[self.network], DENSE_RECIPE, seed=self.seed, folder=folder).run()
        return model

    def _compressed(self, ratio: int) -> opq.Finetuned:
        model = copy.deepcopy(self.dense)
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.ndim < 2:
                    tensor.copy_((tensor * GRID).round() / GRID).requires_grad_(False)
        finetuned = opq.finetune(
            model,
            self.loader,
            epochs=CASES[self.network][ratio],
            teacher=self.dense,
            recipe=RECIPE,
            seed=self.seed,
            folder=self.folder / f"ratio_{ratio}",
            watch=self._watch,
            ratio=ratio,
            auxiliary="half",
        )
        opq.verify(finetuned.compressed.data)
        return finetuned

    def _top1(self, model: nn.Module) -> float:
        return cast(float, opq.evaluate(model, self.test).top1)

    def _watch(self, model: nn.Module) -> Row:
        return {"top1": self._top1(model)}


def opened(network: str, data: bytes) -> nn.Module:
    """The network as a reader of the file has it."""
    model = MAKERS[network]()
    model.load_state_dict(opq.torch.load(data))
    return model


def main() -> int:
    """Run what is asked; add its rows to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(MAKERS)}; by default all")
    parser.add_argument("--ratios", type=int, nargs="+", help="these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    if unknown := set(asked.networks) - set(MAKERS):
        parser.error(f"unknown network {min(unknown)}; there are {', '.join(MAKERS)}")
    folder = Path(os.environ.get("OPQ_RUNS") or ROOT / "runs" / "out") / "mnist"
    for network in asked.networks or MAKERS:
        for seed in asked.seeds:
            series = Series(network, seed, folder)
            for ratio in CASES[network]:
                if not asked.ratios or ratio in asked.ratios:
                    keep_row("mnist", series.row(ratio), ("network", "ratio", "seed"), _place, seed=None, libraries=["torch"])
    return 0


def _place(row: Row) -> tuple[Any, ...]:
    return list(MAKERS).index(row["network"]), row["ratio"], row["seed"]


if __name__ == "__main__":
    raise SystemExit(main())
