"""The field's oldest table: LeNet-300-100 and LeNet-5 on MNIST, in the bytes of the real file.

Claim: with a 150th of its bytes LeNet-300-100, with a 400th of them LeNet-5 makes fewer errors than Deep Compression's in a
40th (S. Han, H. Mao, W. Dally, 2015: 1.58% and 0.74%). How far they are from their own dense networks, the rows say.

    python benchmarks/mnist.py
    python benchmarks/mnist.py lenet-5 --seeds 0

The dense network is trained on distorted images until it gets no better; it is the teacher of all that follows. Each ratio is
a round that begins where the one before it ended, the first one at the dense network: a training towards few weights
(sparsifying.py), a plan made in one shot, a training with the masks and steps of that plan. Half of every batch is distorted,
half is as it is. `epochs` and `seconds` add up all rounds so far; `dense_epochs` come before them.

Every training keeps its checkpoints in the folder that OPQ_RUNS names, by default runs/out, and goes on from there; a row
is put into results/mnist.json as soon as it is done. OPQ_CACHE names the folder for distorted images.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from handwriting import Handwriting, TestImages
from harness import RESULTS, ROOT, Row, print_rows, save_result
from networks.lenet import lenet_5, lenet_300_100
from sparsifying import Sparsifier, plan_sparse
from torch import nn

import opq
import opq.torch
from opq.training.checkpoints import RunFolder
from opq.training.loop import Training

MAKERS: Mapping[str, Callable[[], nn.Module]] = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5}


@dataclass(frozen=True)
class Round:
    """A file ratio, and the epochs of its two trainings."""

    ratio: int
    sparsifying: int
    finetuning: int


ROUNDS: Mapping[str, tuple[Round, ...]] = {
    "lenet-300-100": (Round(40, 12, 10), Round(80, 12, 10), Round(150, 16, 16), Round(200, 12, 16)),
    "lenet-5": (Round(40, 4, 3), Round(108, 4, 3), Round(200, 4, 3), Round(400, 6, 5)),
}
DENSE_EPOCHS: Mapping[str, int] = {"lenet-300-100": 60, "lenet-5": 24}
DENSE_RECIPE = opq.Recipe(learning_rate=1.5e-3, weight_decay=0.01, warm_up=0.01, optimizer=torch.optim.AdamW)
RECIPE = opq.Recipe(learning_rate=1e-3, weight_decay=0.0, warm_up=0.02, labels=0.3, temperature=2.0, optimizer=torch.optim.Adam)
BITS_A_WEIGHT, FIXED_BYTES = 8.5, 350
"""What a kept weight takes, its place included, and what a file takes beside: so many weights are worth keeping."""

RESERVE = 0.035
"""Share of the budget that is left to codes, which spread while they train."""

GRID = 16
"""Biases are multiples of 1/16, and rest while masks and steps are fixed."""


class Series:
    """One network from one seed: the dense one, then every round."""

    def __init__(self, network: str, seed: int, folder: Path) -> None:
        self.network, self.seed, self.folder = network, seed, folder / f"{network}_{seed}"
        self.test = TestImages()

    def rows(self) -> Iterator[Row]:
        """A row a round."""
        dense = self._dense()
        dense_top1 = self._top1(dense)
        loader = Handwriting(distorted=0.5)
        model, epochs, seconds = copy.deepcopy(dense), 0, 0.0
        for number, task in enumerate(ROUNDS[self.network], start=1):
            finetuned, spent = self._round(model, dense, loader, task)
            epochs += task.sparsifying + task.finetuning
            seconds += spent
            facts = opq.inspect(finetuned.compressed.data)
            yield {
                "network": self.network,
                "seed": self.seed,
                "ratio": task.ratio,
                "file_ratio": facts.file_ratio,
                "file_bytes": facts.file_bytes,
                "nominal_ratio": facts.nominal_ratio,
                "sparsity": facts.sparsity,
                "dense_top1": dense_top1,
                "top1": self._top1(opened(self.network, finetuned.compressed.data)),
                "dense_epochs": DENSE_EPOCHS[self.network],
                "rounds": number,
                "epochs": epochs,
                "seconds": seconds,
            }

    def _dense(self) -> nn.Module:
        torch.manual_seed(self.seed)
        model = MAKERS[self.network]()
        loader = Handwriting(distorted=1.0)
        folder = RunFolder(self.folder / "dense")
        Training(model, loader, DENSE_EPOCHS[self.network], DENSE_RECIPE, seed=self.seed, folder=folder).run()
        return model

    def _round(self, model: nn.Module, dense: nn.Module, loader: Handwriting, task: Round) -> tuple[opq.Finetuned, float]:
        """Sparsify, plan, finetune; the model then holds what the file holds. Also the seconds it took."""
        folder = self.folder / f"ratio_{task.ratio}"
        budget = math.floor(sum(tensor.nbytes for tensor in dense.state_dict().values()) / task.ratio)
        kept = round(8 * (budget - FIXED_BYTES) / BITS_A_WEIGHT)
        model.requires_grad_(True)
        sparsifier = partial(Sparsifier, steps=task.sparsifying * len(loader), kept=kept)
        recipe = replace(RECIPE, optimizer=sparsifier)
        sparse = Training(
            model, loader, task.sparsifying, recipe, dense, self.seed, RunFolder(folder / "sparse"), self._watch
        ).run()
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
            epochs=task.finetuning,
            start=plan,
            budget=budget,
            teacher=dense,
            recipe=RECIPE,
            seed=self.seed,
            folder=folder / "finetuned",
            watch=self._watch,
        )
        opq.verify(finetuned.compressed.data)
        return finetuned, planning + sum(row["seconds"] for row in (*sparse, *finetuned.history))

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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    if unknown := set(asked.networks) - set(MAKERS):
        parser.error(f"unknown network {min(unknown)}; there are {', '.join(MAKERS)}")
    folder = Path(os.environ.get("OPQ_RUNS") or ROOT / "runs" / "out") / "mnist"
    for network in asked.networks or MAKERS:
        for seed in asked.seeds:
            for row in Series(network, seed, folder).rows():
                print_rows([row])
                save_result("mnist", merged(row), seed=None, libraries=["torch"])
    return 0


def merged(new: Row) -> list[Row]:
    """The rows of the result file with `new`, which replaces that of the same network, seed and ratio."""

    def key(row: Row) -> tuple[Any, ...]:
        return list(MAKERS).index(row["network"]), row["ratio"], row["seed"]

    path = RESULTS / "mnist.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for _, row in sorted({key(row): row for row in (*known, new)}.items())]


if __name__ == "__main__":
    raise SystemExit(main())
