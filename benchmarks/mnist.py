"""LeNet-300-100 and LeNet-5 on MNIST, the oldest benchmark of network compression, at the bytes of the real file.

Claim: LeNet-300-100 at file ratio 150 makes fewer errors than that of Deep Compression at 40 (S. Han, H. Mao, W. Dally, 2015:
1.58%; LeNet-5 0.74% at 39). The rows also give the errors of the dense networks, and LeNet-5 at ratio 400.

    python benchmarks/mnist.py
    python benchmarks/mnist.py lenet-5 --ratios 400 --seeds 0 1 2

The dense network is trained on distorted images until it stops improving. It is the teacher and the starting point of every
ratio: a training with a sparsity penalty (sparsifying.py), one plan, and a training with the masks and steps of that plan. Half
of every batch is distorted. `epochs` and `seconds` are those of both trainings, after `dense_epochs`.

Every training saves its checkpoints in the folder that OPQ_RUNS names, by default runs/out, and resumes from there. A row is
saved in results/mnist.json as soon as it is measured. OPQ_CACHE names the folder for distorted images.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from handwriting import Handwriting, TestImages
from harness import Row, commit_of_run, keep_row, runs_folder
from networks.lenet import lenet_5, lenet_300_100
from sparsifying import Sparsifier, plan_sparse
from torch import nn
from trainings import train

import opq
import opq.torch

MAKERS: Mapping[str, Callable[[], nn.Module]] = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5}


@dataclass(frozen=True)
class Case:
    """A file ratio, and the epochs of its two trainings."""

    ratio: int
    sparsifying: int
    finetuning: int


CASES: Mapping[str, tuple[Case, ...]] = {
    "lenet-300-100": (Case(40, 12, 10), Case(80, 16, 12), Case(150, 60, 45)),
    "lenet-5": (Case(40, 6, 4), Case(108, 8, 5), Case(400, 12, 8)),
}
DENSE_EPOCHS: Mapping[str, int] = {"lenet-300-100": 60, "lenet-5": 24}
DENSE = opq.TrainingConfig(epochs=1, learning_rate=1.5e-3, weight_decay=0.01, warmup=0.01, optimizer=torch.optim.AdamW)
"""Training of the dense network, with another number of epochs and another seed."""

COMPRESSED = opq.TrainingConfig(
    epochs=1,
    mask_update_epochs=0,
    learning_rate=1e-3,
    weight_decay=0.0,
    warmup=0.02,
    label_weight=0.3,
    temperature=2.0,
    optimizer=torch.optim.Adam,
)
"""The two trainings after that, with another number of epochs and another seed each."""

BITS_PER_KEPT_WEIGHT, FIXED_BYTES = 8.5, 350
"""Bits of a kept weight, with its position, and bytes of the rest of a file: they give the number of weights to keep."""

RESERVE = 0.035
"""Share of the byte budget that the plan leaves free, because codes spread while they train."""

GRID = 16
"""Biases are rounded to multiples of 1/16, and do not train while masks and steps are fixed."""


class Series:
    """One network from one seed: the dense one, then every case."""

    def __init__(self, network: str, seed: int, folder: Path) -> None:
        self.network, self.seed, self.folder = network, seed, folder / f"{network}_{seed}"
        self.test = TestImages()
        self.dense = self._dense()
        self.dense_top1 = self._top1(self.dense)
        self.loader = Handwriting(distorted=0.5)

    def row(self, case: Case) -> Row:
        """Train at one file ratio."""
        finetuned, seconds = self._compressed(case)
        inspection = opq.inspect(finetuned.compressed.data)
        return {
            "network": self.network,
            "seed": self.seed,
            "ratio": case.ratio,
            "file_ratio": inspection.file_ratio,
            "file_bytes": inspection.file_bytes,
            "nominal_ratio": inspection.nominal_ratio,
            "sparsity": inspection.sparsity,
            "dense_top1": self.dense_top1,
            "top1": self._top1(load_network(self.network, finetuned.compressed.data)),
            "dense_epochs": DENSE_EPOCHS[self.network],
            "epochs": case.sparsifying + case.finetuning,
            "seconds": seconds,
        }

    def folder_of(self, case: Case) -> Path:
        """The folder of a row's trainings."""
        return self.folder / f"ratio_{case.ratio}_{case.sparsifying}_{case.finetuning}"

    def _dense(self) -> nn.Module:
        torch.manual_seed(self.seed)
        model = MAKERS[self.network]()
        loader = Handwriting(distorted=1.0)
        config = replace(DENSE, epochs=DENSE_EPOCHS[self.network], seed=self.seed)
        train(model, loader, config, self.folder / "dense")
        return model

    def _compressed(self, case: Case) -> tuple[opq.FinetuneResult, float]:
        """Train with a sparsity penalty, plan, and finetune: the result, and the seconds of all three."""
        model, loader = copy.deepcopy(self.dense), self.loader
        folder = self.folder_of(case)
        commit_of_run(folder)
        budget = math.floor(sum(tensor.nbytes for tensor in model.state_dict().values()) / case.ratio)
        kept = round(8 * (budget - FIXED_BYTES) / BITS_PER_KEPT_WEIGHT)
        sparsifier = partial(Sparsifier, steps=case.sparsifying * len(loader), num_kept=kept)
        config = replace(COMPRESSED, epochs=case.sparsifying, seed=self.seed, optimizer=sparsifier)
        sparse = train(model, loader, config, folder / "sparse", teacher=self.dense, on_epoch_end=self._row_of_top1)
        start = time.perf_counter()
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.ndim < 2:
                    tensor.copy_((tensor * GRID).round() / GRID).requires_grad_(False)
        plan = plan_sparse(model, loader.images[:300].float() / 255.0, round(budget * (1.0 - RESERVE)))
        planning = time.perf_counter() - start
        finetuned = opq.finetune(
            model,
            loader,
            plan,
            replace(COMPRESSED, epochs=case.finetuning, seed=self.seed),
            teacher=self.dense,
            budget=budget,
            folder=folder / "finetuned",
            on_epoch_end=self._row_of_top1,
        )
        opq.verify(finetuned.compressed.data)
        return finetuned, planning + sum(row["seconds"] for row in (*sparse, *finetuned.history))

    def _top1(self, model: nn.Module) -> float:
        return cast(float, opq.evaluate(model, self.test).top1)

    def _row_of_top1(self, model: nn.Module) -> Row:
        return {"top1": self._top1(model)}


def load_network(network: str, data: bytes) -> nn.Module:
    """The network in a file."""
    model = MAKERS[network]()
    model.load_state_dict(opq.torch.load(data))
    return model


def main() -> int:
    """Measure the rows, and add them to the result file; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(MAKERS)}; by default all")
    parser.add_argument("--ratios", type=int, nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    if unknown := set(options.networks) - set(MAKERS):
        parser.error(f"unknown network {min(unknown)}; there are {', '.join(MAKERS)}")
    for network in options.networks or MAKERS:
        for seed in options.seeds:
            series = Series(network, seed, runs_folder() / "mnist")
            for case in CASES[network]:
                if not options.ratios or case.ratio in options.ratios:
                    keep_row(
                        "mnist",
                        series.row(case),
                        ("network", "ratio", "seed"),
                        _place,
                        command=["mnist.py", network, "--ratios", str(case.ratio), "--seeds", str(seed)],
                        commit=commit_of_run(series.folder_of(case)),
                        seed=None,
                        libraries=["torch"],
                    )
    return 0


def _place(row: Row) -> tuple[Any, ...]:
    return list(MAKERS).index(row["network"]), row["ratio"], row["seed"]


if __name__ == "__main__":
    raise SystemExit(main())
