"""What the whole way from a dense network to a file costs, against the usual, iterative one.

What it tells: seconds of a plan, of an epoch of a plain and of a prepared network, and of the whole way to a file, beside
pruning little by little and then training with learned quantization steps (iterative.py); and the errors of both at the same
bytes.

    python benchmarks/efficiency.py

LeNet-300-100 on MNIST, at each of SPARSITIES. The iterative way goes first; the bytes of its file, coded by opq, are what opq
is then asked for, from the same dense network and for as many epochs as EPOCHS says, the last of them as many as the iterative
way takes: with masks open for two thirds of the epochs, as is the default, and with those of the dense weights. All learn from
labels without distortions. `seconds` are those of the clock, `processor_seconds` those of the process in all its threads, which
other work on the machine disturbs less.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
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
from opq.rate_distortion.plan import AuxiliaryPlan
from opq.training.trainer import Training

DENSE_EPOCHS = 10
PRUNING_EPOCHS, QUANTIZING_EPOCHS = 12, 6
EPOCHS = (2, 4, 8, PRUNING_EPOCHS + QUANTIZING_EPOCHS)
SPARSITIES, BITS = (0.8, 0.95), 4
REPEATS = 3
SEED = 0
ADAM = opq.TrainingConfig(learning_rate=1e-3, weight_decay=0.0, optimizer=torch.optim.Adam)


class Cost(NamedTuple):
    """What some work takes, by the clock and of the processor; None where it was not measured."""

    seconds: float | None
    processor_seconds: float | None


def main() -> int:
    """Measure both ways; print and save the rows."""
    loader = Handwriting(distorted=0.0)
    torch.manual_seed(SEED)
    dense = lenet_300_100()
    Training(dense, loader, DENSE_EPOCHS, ADAM, seed=SEED).run()
    rows = [_row("dense", dense, sum(tensor.nbytes for tensor in dense.state_dict().values()), DENSE_EPOCHS)]
    for sparsity in SPARSITIES:
        rows += _ways(dense, loader, sparsity)
    rows += _parts(dense, loader, rows[-1]["file_bytes"])
    print_rows(rows)
    save_result("efficiency", rows, seed=SEED, libraries=["torch"])
    return 0


def _ways(dense: nn.Module, loader: Handwriting, sparsity: float) -> list[Row]:
    """The iterative way to this sparsity, then opq to the same bytes, in fewer epochs and in as many."""
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
    for way, opened in (("opq", None), ("opq, masks fixed", 0)):
        for epochs in EPOCHS:
            model = copy.deepcopy(dense)
            train = partial(opq.finetune, model, loader, epochs=epochs, mask_update_epochs=opened, size=budget, recipe=ADAM, seed=SEED)
            finetuned, cost = _timed(train)
            rows.append(_row(way, model, finetuned.compressed.file_bytes, epochs, cost))
    return rows


def file_bytes(model: nn.Module, steps: dict[str, float]) -> int:
    """Bytes of the .opq file of a network that is in codebooks of these steps already."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    layers = {
        name: opq.LayerPlan(tuple(state[name].shape), float(np.float32(step)), 0.0, 0.5, 0.0, 0.0, 0.0)
        for name, step in steps.items()
    }
    dense_bytes = sum(tensor.nbytes for tensor in state.values())
    return opq.compress(state, plan=opq.Plan("joint", {}, AuxiliaryPlan(), None, dense_bytes, dense_bytes, layers)).file_bytes


def _parts(dense: nn.Module, loader: Handwriting, budget: int) -> list[Row]:
    """What a plan, a plain epoch and a prepared one take, measured in turn; medians."""
    plain, prepared = copy.deepcopy(dense), opq.prepare(copy.deepcopy(dense), size=budget)
    cases: dict[str, Callable[[], object]] = {
        "plan": lambda: opq.plan(dense, size=budget),
        "plain epoch": lambda: Training(plain, loader, 1, ADAM, seed=SEED).run(),
        "prepared epoch": lambda: Training(prepared, loader, 1, ADAM, seed=SEED).run(),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in cases}
    for _ in range(REPEATS):
        for name, case in cases.items():
            costs[name].append(_timed(case)[1])
    medians = {name: Cost(*(summarize(seconds).median for seconds in zip(*cost, strict=True))) for name, cost in costs.items()}
    return [{"way": name, "file_bytes": None, "top1": None, "epochs": None, **cost._asdict()} for name, cost in medians.items()]


def _row(way: str, model: nn.Module, size: int, epochs: int, cost: Cost | None = None) -> Row:
    top1 = opq.evaluate(model, TestImages()).top1
    return {"way": way, "file_bytes": size, "top1": top1, "epochs": epochs, **(cost or Cost(None, None))._asdict()}


def _timed(work: Callable[[], Any]) -> tuple[Any, Cost]:
    start, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, Cost(time.perf_counter() - start, time.process_time() - processor)


if __name__ == "__main__":
    raise SystemExit(main())
