"""OPQ finetuned against the dense network trained as long, at the bytes of the real file.

Claim: on CIFAR-10 (JPEG), a ResNet whose steps were solved once and whose weights were then trained for a few epochs
comes close to the dense network at file ratios from 10 to 40, in joint mode and in paper mode, both within the asked bytes.

    python benchmarks/finetune.py resnet20
    python benchmarks/finetune.py resnet20 --only joint:20:6 joint:30:6

The dense network is the published one, adapted to these images with labels; that is the teacher, and where OPQ starts. Then
either is trained for as many epochs more: the dense one goes on with labels, OPQ learns from the teacher. `dense_top1` is
the dense network after all of its epochs.

In joint mode masks are open for two thirds of the epochs; in paper mode they are the dense weights'.

Every training keeps its checkpoints in the folder that OPQ_RUNS names, by default runs/out, and goes on from there; a row is
added to results/finetune.json as soon as it is done. OPQ_CACHE names the folder for decoded images.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import NETWORKS, Row, commit_of_run, data_file, keep_row, runs_folder
from images import Batches, Whole, cifar10
from networks.resnet_cifar import preprocess, resnet20, resnet56
from safetensors.torch import load_file
from torch import Tensor, nn
from trainings import train

import opq
from opq.config import CompressionOptions
from opq.training.fingerprint import fingerprint

MAKERS: Mapping[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "resnet56": resnet56}
DATA = "CIFAR-10 (JPEG)"
ADAPTING = {"resnet20": 8, "resnet56": 4}
"""{network: epochs with labels that adapt it to these images}"""
PAPER_BITS = {10: 4.0, 20: 3.0, 30: 3.0, 40: 3.0}
DENSE_RECIPE = opq.TrainingConfig(learning_rate=0.05, weight_decay=5e-4, clip=None)
CONTINUED_RECIPE = opq.TrainingConfig(learning_rate=0.02, weight_decay=5e-4, clip=None)
RECIPE = opq.TrainingConfig(learning_rate=0.03)
RECIPES = {3: replace(RECIPE, clip=None), 6: replace(RECIPE, clip=None), 12: RECIPE}
"""{epochs: recipe}; the shorter trainings were begun before clipping gradients became the default."""

SHORT = (
    *(("joint", ratio) for ratio in (35, 25, 40, 30, 20, 10)),
    *(("paper", ratio) for ratio in (30, 20, 40, 10)),
)
CASES = {
    "resnet20": (*((*case, 6) for case in SHORT), ("joint", 35, 12), ("joint", 25, 12)),
    "resnet56": tuple((*case, 3) for case in SHORT if case[1] not in (25, 35)),
}
"""{network: (mode, asked file ratio, epochs)}"""
AUXILIARY = CompressionOptions(auxiliary="8bit", batch_norm="canonical")
RESERVE = 0.07
"""Share of the budget that a start leaves to codes, which spread while they train; finetune's own default."""

SEED = 0


class RememberedTeacher:
    """A network whose logits for the batches of each epoch are kept on disk, for all trainings that see the same batches."""

    def __init__(self, network: nn.Module, batches: Batches, folder: Path) -> None:
        self._network, self._batches, self._folder = network.eval(), batches, folder
        self._epoch = -1
        self._known: Tensor | None = None
        self._new: list[Tensor] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits of the batch that was drawn last, which `inputs` are."""
        epoch, number = self._batches.epoch, self._batches.number
        path = self._folder / f"epoch_{epoch}.npy"
        if epoch != self._epoch:
            self._epoch, self._new = epoch, []
            self._known = torch.from_numpy(np.load(path)) if path.exists() else None
        if self._known is not None:
            return self._known[number]
        logits: Tensor = self._network(inputs).float()
        self._new.append(logits)
        if len(self._new) == len(self._batches):
            temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
            np.save(temporary, torch.stack(self._new).numpy())
            temporary.replace(path)
        return logits


class Series:
    """All trainings of one network."""

    def __init__(self, network: str, folder: Path) -> None:
        self.network, self.folder = network, folder / network
        self.train = Batches(*cifar10("train"), preprocess)
        self.test = Whole(*cifar10("test"), preprocess)

    def dense(self) -> nn.Module:
        """The adapted network."""
        model = MAKERS[self.network]()
        model.load_state_dict(load_file(data_file(NETWORKS[self.network])))
        return self._trained(model, "dense", ADAPTING[self.network], DENSE_RECIPE)

    def longer_top1(self, dense: nn.Module, epochs: int) -> float:
        """Top-1 of what the adapted network becomes in so many epochs more."""
        return self.top1(self._trained(copy.deepcopy(dense), f"dense_longer_{epochs}", epochs, CONTINUED_RECIPE))

    def compressed(self, dense: nn.Module, mode: str, ratio: int, epochs: int) -> tuple[opq.FinetuneResult, float]:
        """The network finetuned at a file ratio, and its top-1 as the file has it."""
        model = copy.deepcopy(dense)
        folder = self.folder_of(mode, ratio, epochs)
        commit_of_run(folder)
        remembered = self.folder / f"teacher_{fingerprint(dense).removeprefix('sha256 ')[:12]}"
        teacher = RememberedTeacher(copy.deepcopy(dense), self.train, remembered)
        dense_bytes = sum(tensor.nbytes for tensor in dense.state_dict().values())
        joint = mode == "joint"
        finetuned = opq.finetune(
            model,
            self.train,
            epochs=epochs,
            mask_update_epochs=mask_update_epochs(mode, epochs),
            start=None if joint else two_stage_plan(dense, ratio),
            reserve=RESERVE,
            budget=math.floor(dense_bytes / ratio),
            teacher=teacher,
            recipe=RECIPES[epochs],
            folder=folder,
            seed=SEED,
            watch=self._watch,
            **(CompressionOptions(ratio=ratio, **AUXILIARY) if joint else CompressionOptions()),
        )
        opq.verify(finetuned.compressed.data)
        return finetuned, self.top1(model)

    def folder_of(self, mode: str, ratio: int, epochs: int) -> Path:
        """Where the training of a row is kept."""
        return self.folder / f"{mode}_{ratio}_{epochs}"

    def top1(self, model: nn.Module) -> float:
        """Percent of the test images."""
        return opq.evaluate(model, self.test).top1 or 0.0

    def _trained(self, model: nn.Module, name: str, epochs: int, recipe: opq.TrainingConfig) -> nn.Module:
        train(model, self.train, epochs, recipe, self.folder / name, seed=SEED, watch=self._watch)
        return model

    def _watch(self, model: nn.Module) -> Row:
        top1 = self.top1(model)
        print(f"{self.network}: {top1:.2f}", flush=True)
        return {"top1": top1}


def mask_update_epochs(mode: str, epochs: int) -> int:
    """How many of a row's epochs leave masks open."""
    return 2 * epochs // 3 if mode == "joint" else 0


def two_stage_plan(dense: nn.Module, ratio: float) -> opq.Plan:
    """The paper's plan whose file has this ratio, less the reserve: PAPER_BITS, and as many zeros as that takes."""
    state = dense.state_dict()
    budget = (1.0 - RESERVE) * sum(tensor.nbytes for tensor in state.values()) / ratio
    low, high = 0.0, 0.999
    for _ in range(12):
        middle = (low + high) / 2
        if opq.compress(state, sparsity=middle, bits=PAPER_BITS[round(ratio)], **AUXILIARY).file_bytes > budget:
            low = middle
        else:
            high = middle
    return opq.compress(state, sparsity=high, bits=PAPER_BITS[round(ratio)], **AUXILIARY).plan


def main() -> None:
    """Train what is not trained yet, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=MAKERS)
    parser.add_argument("--only", nargs="*", metavar="MODE:RATIO:EPOCHS", help="these rows alone")
    arguments = parser.parse_args()
    cases = {f"{mode}:{ratio}:{epochs}": (mode, ratio, epochs) for mode, ratio, epochs in CASES[arguments.network]}
    if unknown := set(arguments.only or ()) - set(cases):
        parser.error(f"no row {min(unknown)}; there are {', '.join(cases)}")
    series = Series(arguments.network, runs_folder())
    dense = series.dense()
    teacher_top1 = series.top1(dense)
    for name in arguments.only or cases:
        mode, ratio, epochs = cases[name]
        dense_top1 = series.longer_top1(dense, epochs)
        finetuned, top1 = series.compressed(dense, mode, ratio, epochs)
        inspection = opq.inspect(finetuned.compressed.data)
        add_row(
            {
                "network": arguments.network,
                "data": DATA,
                "mode": mode,
                "start": "weights",
                "file_ratio": finetuned.compressed.file_ratio,
                "file_bytes": finetuned.compressed.file_bytes,
                "nominal_ratio": inspection.nominal_ratio,
                "dense_top1": dense_top1,
                "top1": top1,
                "epochs": epochs,
                "open_epochs": mask_update_epochs(mode, epochs),
                "seconds": sum(row["seconds"] for row in finetuned.history),
                "asked_ratio": float(ratio),
                "teacher_top1": teacher_top1,
                "dense_epochs": ADAPTING[arguments.network] + epochs,
                "trained_bytes": finetuned.trained_bytes,
                "lowered": finetuned.fit.lowered,
            },
            ["finetune.py", arguments.network, "--only", name],
            commit_of_run(series.folder_of(mode, ratio, epochs)),
        )
        print(finetuned, f"top1 {top1:.2f}", flush=True)


def add_row(row: Row, command: Sequence[str], commit: str | None = None) -> None:
    """Put a row into the result file, in place of an earlier one of the same case."""
    case = ("network", "data", "mode", "asked_ratio", "epochs")
    keep_row(
        "finetune",
        row,
        case,
        lambda row: [row[key] for key in case],
        command=command,
        commit=commit,
        seed=SEED,
        libraries=["torch"],
    )


if __name__ == "__main__":
    main()
