"""The cost of one-shot compression and finetuning compared with iterative pruning and quantization.

It measures the seconds of a plan, of an epoch of a plain and of a prepared network, and of the whole procedure from a dense
network to a file. The procedure is compared with gradual pruning followed by training with learned step sizes (iterative.py),
in time and in accuracy at the same bytes.

    python benchmarks/efficiency.py

LeNet-300-100 on MNIST, at each of SPARSITIES. The iterative procedure runs first. The bytes of its file, coded by opq, are the
target of opq, from the same dense network and with each number of EPOCHS, the last of which is that of the iterative procedure.
Masks are updated for two thirds of the epochs, the default, or are fixed to those of the dense weights. All train on labels,
without distorted images. `seconds` are wall seconds; `processor_seconds` are those of the process in all its threads, which
other work on the machine affects less.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from handwriting import Handwriting, TestImages
from harness import Row, print_rows, save_result, summarize
from iterative import compress_iteratively
from networks.lenet import lenet_300_100
from torch import nn

import opq
from opq.training.trainer import Trainer

DENSE_EPOCHS = 10
PRUNING_EPOCHS, QUANTIZING_EPOCHS = 12, 6
EPOCHS = (2, 4, 8, PRUNING_EPOCHS + QUANTIZING_EPOCHS)
SPARSITIES, BITS = (0.8, 0.95), 4
REPEATS = 3
SEED = 0
ADAM = opq.TrainingConfig(epochs=1, seed=SEED, learning_rate=1e-3, weight_decay=0.0, optimizer=torch.optim.Adam)


class Cost(NamedTuple):
    """Wall and processor seconds; None if they were not measured."""

    seconds: float | None
    processor_seconds: float | None


def main() -> int:
    """Measure both procedures; the exit status."""
    loader = Handwriting(distorted=0.0)
    torch.manual_seed(SEED)
    dense = lenet_300_100()
    Trainer(dense, loader, replace(ADAM, epochs=DENSE_EPOCHS)).run()
    rows = [_row("dense", dense, sum(tensor.nbytes for tensor in dense.state_dict().values()), DENSE_EPOCHS)]
    for sparsity in SPARSITIES:
        rows += _procedures(dense, loader, sparsity)
    rows += _parts(dense, loader, rows[-1]["file_bytes"])
    print_rows(rows)
    save_result("efficiency", rows, seed=SEED, libraries=["torch"])
    return 0


def _procedures(dense: nn.Module, loader: Handwriting, sparsity: float) -> list[Row]:
    """The iterative procedure at this sparsity, then opq at the same bytes, in fewer epochs and in as many."""
    model = copy.deepcopy(dense)
    torch.manual_seed(SEED)
    steps, cost = _timed(
        lambda: compress_iteratively(
            model,
            loader,
            partial(torch.optim.Adam, lr=ADAM.learning_rate),
            sparsity=sparsity,
            bits=BITS,
            pruning_epochs=PRUNING_EPOCHS,
            quantizing_epochs=QUANTIZING_EPOCHS,
        )
    )
    budget = file_bytes(model, steps)
    rows = [_row("iterative", model, budget, PRUNING_EPOCHS + QUANTIZING_EPOCHS, cost)]
    config = opq.CompressionConfig(target=opq.Size(budget))
    for method, update_epochs in (("opq", None), ("opq, masks fixed", 0)):
        for epochs in EPOCHS:
            model = copy.deepcopy(dense)
            training = replace(ADAM, epochs=epochs, mask_update_epochs=update_epochs)
            finetuned, cost = _timed(partial(opq.finetune, model, loader, config, training))
            rows.append(_row(method, model, finetuned.compressed.file_bytes, epochs, cost))
    return rows


def file_bytes(model: nn.Module, steps: dict[str, float]) -> int:
    """Bytes of the .opq file of a network whose weights are multiples of these steps."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    layers = {
        name: opq.LayerPlan(tuple(state[name].shape), float(np.float32(step)), 0.0, 0.5, 0.0, 0.0)
        for name, step in steps.items()
    }
    dense_bytes = sum(tensor.nbytes for tensor in state.values())
    plan = opq.Plan("joint", opq.Size(dense_bytes), opq.AuxiliaryPlan(), None, dense_bytes, dense_bytes, layers)
    return opq.compress(state, plan).file_bytes


def _parts(dense: nn.Module, loader: Handwriting, budget: int) -> list[Row]:
    """Medians of the costs of a plan, a plain epoch and a prepared one, measured in turns."""
    plain, prepared = copy.deepcopy(dense), opq.prepare(copy.deepcopy(dense), size=budget).model
    cases: dict[str, Callable[[], object]] = {
        "plan": lambda: opq.plan(dense, size=budget),
        "plain epoch": lambda: Trainer(plain, loader, ADAM).run(),
        "prepared epoch": lambda: Trainer(prepared, loader, ADAM).run(),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in cases}
    for _ in range(REPEATS):
        for name, case in cases.items():
            costs[name].append(_timed(case)[1])
    medians = {name: Cost(*(summarize(seconds).median for seconds in zip(*cost, strict=True))) for name, cost in costs.items()}
    return [{"way": name, "file_bytes": None, "top1": None, "epochs": None, **cost._asdict()} for name, cost in medians.items()]


def _row(method: str, model: nn.Module, size: int, epochs: int, cost: Cost | None = None) -> Row:
    top1 = opq.evaluate(model, TestImages()).top1
    return {"way": method, "file_bytes": size, "top1": top1, "epochs": epochs, **(cost or Cost(None, None))._asdict()}


def _timed(work: Callable[[], Any]) -> tuple[Any, Cost]:
    start, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, Cost(time.perf_counter() - start, time.process_time() - processor)


if __name__ == "__main__":
    raise SystemExit(main())
