"""Train the two small language models on the prose of docstrings, on one core: 25 minutes each.

Run with `cd benchmarks && OMP_NUM_THREADS=1 nice python -m zoo_networks.train_small gpt5m lstm`. Checkpoints are in
runs/out/zoo (OPQ_RUNS). A training that was interrupted goes on from its last one; a complete one is left.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import commit_of_run, runs_folder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional

from opq.training.device import autocast
from zoo_networks.small_models import GPT, LSTM, VOCABULARY
from zoo_networks.texts import paragraphs

SEED = 0
WARM_UP, LAST_RATE, WEIGHT_DECAY, LARGEST_GRADIENT = 100, 0.1, 0.1, 1.0
"""Steps in which the learning rate rises; its last fraction of the peak; of AdamW; the norm to which gradients are clipped."""

SAVED = 100
"""Steps between checkpoints."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: `steps` batches of `size` random texts of `length` tokens, at a peak learning rate `rate`."""

    make: Callable[[], nn.Module]
    steps: int
    size: int
    length: int
    rate: float


RECIPES = {"gpt5m": Recipe(GPT, 1500, 8, 256, 1.5e-3), "lstm": Recipe(LSTM, 1500, 32, 256, 4e-3)}


def trained(name: str) -> nn.Module:
    """The model of this name after training. Exits 1 if it has not been trained."""
    path = _folder(name) / "trained.pt"
    if not path.exists():
        command = f"cd benchmarks && python -m zoo_networks.train_small {name}"
        print(f"zoo_networks: {name} is not trained; run: {command}", file=sys.stderr)
        raise SystemExit(1)
    model = RECIPES[name].make()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def ids_of(name: str, text: str) -> Tensor:
    """The tokens of a text for the model of this name, int64 (length,): bytes for the LSTM."""
    return torch.tensor(_tokenizer().encode(text).ids if name == "gpt5m" else list(text.encode()))


def train(name: str) -> None:
    """Train the model of this name, from its last checkpoint if there is one."""
    recipe, folder = RECIPES[name], _folder(name)
    commit_of_run(folder)
    torch.manual_seed(SEED)
    model = recipe.make()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    checkpoint, first = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        kept: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    ids = ids_of(name, "\n\n".join(paragraphs("train")))
    total = 0.0
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _schedule(step, recipe.steps)
        starts = torch.randint(len(ids) - recipe.length, (recipe.size, 1), generator=torch.Generator().manual_seed(step))
        batch = ids[starts + torch.arange(recipe.length + 1)]
        with autocast(torch.device("cpu")):
            logits = model(batch[:, :-1])
        loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        total += loss.item()
        if (step + 1) % SAVED == 0:
            print(f"{name}: step {step + 1} of {recipe.steps}, perplexity {math.exp(total / SAVED):.2f}", flush=True)
            total = 0.0
            _save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint)
    _save(model.state_dict(), folder / "trained.pt")


def _schedule(step: int, steps: int) -> float:
    """The learning rate of a step as a fraction of the peak: linear, then a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    cosine = (1.0 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP))) / 2.0
    return LAST_RATE + (1.0 - LAST_RATE) * cosine


def _tokenizer() -> Tokenizer:
    """Byte-level BPE of the training text, made once."""
    path = _folder("gpt5m") / "tokenizer.json"
    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(paragraphs("train"), trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def _folder(name: str) -> Path:
    return runs_folder() / "zoo" / name


def _save(content: object, path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.pt")
    torch.save(content, temporary)
    temporary.replace(path)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or RECIPES:
        if not (_folder(chosen) / "trained.pt").exists():
            train(chosen)
