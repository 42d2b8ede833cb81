"""Finetuned ResNets compared with the dense network trained as long, at the bytes of the real file.

Claim: on CIFAR-10 (JPEG), a ResNet whose step sizes were solved once and whose weights were then trained for a few epochs
comes close to the dense network at file ratios from 10 to 40, with a joint and with a two-stage plan, both within the
requested bytes.

    python benchmarks/finetune.py resnet20
    python benchmarks/finetune.py resnet20 --only joint:20:6 joint:30:6

The dense network is the published one, adapted to these images with labels. It is the teacher and the starting point. Then both
networks train for the same number of epochs: the dense one continues with labels, the compressed one is distilled from the
teacher. `dense_top1` is the dense network after all of its epochs.

Mode "joint": masks are updated for two thirds of the epochs, which `open_epochs` counts. Mode "paper": a two-stage plan, whose
masks are those of the dense weights.

Every training saves its checkpoints in the folder that OPQ_RUNS names, by default runs/out, and resumes from there. A row is
added to results/finetune.json as soon as it is measured. OPQ_CACHE names the folder for decoded images.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from harness import NETWORKS, Row, commit_of_run, data_file, keep_row, runs_folder
from images import Batches, Whole, cifar10
from networks.resnet_cifar import preprocess, resnet20, resnet56
from safetensors.torch import load_file
from torch import Tensor, nn
from trainings import train

import opq
from opq.training.fingerprint import fingerprint

MAKERS: Mapping[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "resnet56": resnet56}
DATA = "CIFAR-10 (JPEG)"
ADAPTING = {"resnet20": 8, "resnet56": 4}
"""{network: epochs with labels that adapt it to these images}"""

TWO_STAGE_BITS = {10: 4.0, 20: 3.0, 30: 3.0, 40: 3.0}
SEED = 0
RESERVE = 0.07
"""Share of the byte budget that the plan leaves free, because codes spread while they train; the default of TrainingConfig."""

ADAPTATION = opq.TrainingConfig(epochs=1, seed=SEED, learning_rate=0.05, weight_decay=5e-4, max_grad_norm=None)
CONTINUATION = opq.TrainingConfig(epochs=1, seed=SEED, learning_rate=0.02, weight_decay=5e-4, max_grad_norm=None)
"""The trainings of the dense network, with another number of epochs each."""

FINETUNING = {
    epochs: opq.TrainingConfig(epochs=epochs, seed=SEED, reserve=RESERVE, learning_rate=0.03, max_grad_norm=norm)
    for epochs, norm in ((3, None), (6, None), (12, 10.0))
}
"""{epochs: config}. The shorter trainings were started before clipping gradients became the default."""

SHORT = (
    *(("joint", ratio) for ratio in (35, 25, 40, 30, 20, 10)),
    *(("paper", ratio) for ratio in (30, 20, 40, 10)),
)
CASES = {
    "resnet20": (*((*case, 6) for case in SHORT), ("joint", 35, 12), ("joint", 25, 12)),
    "resnet56": tuple((*case, 3) for case in SHORT if case[1] not in (25, 35)),
}
"""{network: (mode, requested file ratio, epochs)}"""


class CachedTeacher:
    """A network whose logits for the batches of each epoch are cached on disk, for all trainings on the same batches."""

    def __init__(self, network: nn.Module, batches: Batches, folder: Path) -> None:
        self._network, self._batches, self._folder = network.eval(), batches, folder
        self._epoch = -1
        self._known: Tensor | None = None
        self._new: list[Tensor] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits of `inputs`, which are the latest batch."""
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
        return self._trained(model, "dense", replace(ADAPTATION, epochs=ADAPTING[self.network]))

    def longer_top1(self, dense: nn.Module, epochs: int) -> float:
        """Top-1 of the adapted network after this many more epochs."""
        return self.top1(self._trained(copy.deepcopy(dense), f"dense_longer_{epochs}", replace(CONTINUATION, epochs=epochs)))

    def compressed(self, dense: nn.Module, mode: str, ratio: int, epochs: int) -> tuple[opq.FinetuneResult, float]:
        """The network finetuned at a file ratio, and the top-1 of the network in the file."""
        model = copy.deepcopy(dense)
        folder = self.folder_of(mode, ratio, epochs)
        commit_of_run(folder)
        cache = self.folder / f"teacher_{fingerprint(dense).removeprefix('sha256 ')[:12]}"
        dense_bytes = sum(tensor.nbytes for tensor in dense.state_dict().values())
        finetuned = opq.finetune(
            model,
            self.train,
            compression_config(opq.Ratio(ratio)) if mode == "joint" else two_stage_plan(dense, ratio),
            replace(FINETUNING[epochs], mask_update_epochs=mask_update_epochs(mode, epochs)),
            teacher=CachedTeacher(copy.deepcopy(dense), self.train, cache),
            budget=math.floor(dense_bytes / ratio),
            folder=folder,
            on_epoch_end=self._print_top1,
        )
        opq.verify(finetuned.compressed.data)
        return finetuned, self.top1(model)

    def folder_of(self, mode: str, ratio: int, epochs: int) -> Path:
        """The folder of a row's training."""
        return self.folder / f"{mode}_{ratio}_{epochs}"

    def top1(self, model: nn.Module) -> float:
        """Top-1 on the test images, in percent."""
        return opq.evaluate(model, self.test).top1 or 0.0

    def _trained(self, model: nn.Module, name: str, config: opq.TrainingConfig) -> nn.Module:
        train(model, self.train, config, self.folder / name, on_epoch_end=self._print_top1)
        return model

    def _print_top1(self, model: nn.Module) -> Row:
        top1 = self.top1(model)
        print(f"{self.network}: {top1:.2f}", flush=True)
        return {"top1": top1}


def mask_update_epochs(mode: str, epochs: int) -> int:
    """Number of a row's epochs in which masks are updated."""
    return 2 * epochs // 3 if mode == "joint" else 0


def compression_config(target: opq.Ratio | opq.TwoStage) -> opq.CompressionConfig:
    """The config of all rows, with a target."""
    return opq.CompressionConfig(target=target, auxiliary="uint8", batch_norm="folded")


def two_stage_plan(dense: nn.Module, ratio: float) -> opq.Plan:
    """The two-stage plan whose file has this ratio, minus the reserve: TWO_STAGE_BITS, and as many zeros as that takes."""
    state = dense.state_dict()
    budget = (1.0 - RESERVE) * sum(tensor.nbytes for tensor in state.values()) / ratio

    def compressed(sparsity: float) -> opq.CompressedModel:
        return opq.compress(state, compression_config(opq.TwoStage(sparsity, TWO_STAGE_BITS[round(ratio)])))

    low, high = 0.0, 0.999
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if compressed(middle).file_bytes > budget else (low, middle)
    return cast(opq.Plan, compressed(high).plan)


def main() -> None:
    """Train the rows in sequence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=MAKERS)
    parser.add_argument("--only", nargs="*", metavar="MODE:RATIO:EPOCHS", help="only these rows")
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
                "lowered": finetuned.reduction.lowered,
            },
            ["finetune.py", arguments.network, "--only", name],
            commit_of_run(series.folder_of(mode, ratio, epochs)),
        )
        print(finetuned, f"top1 {top1:.2f}", flush=True)


def add_row(row: Row, command: Sequence[str], commit: str | None = None) -> None:
    """Save a row in the result file; it replaces an earlier row of the same case."""
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
