"""Finetune with the Hugging Face Trainer: a prepared model trains like any other, and a callback keeps the bytes of its file.

python examples/finetune_trainer.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from digits import load_data, make_network, top1, train
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import opq
from opq.callbacks.transformers import BudgetCallback


class Model(nn.Module):
    """Takes keyword arguments and returns a mapping of logits and loss, as the Trainer requires."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss if there are labels."""
        logits = self.network(pixels)
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})


class Digits(Dataset[dict[str, Tensor]]):
    """Images and labels as mappings."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": self.images[index], "labels": self.labels[index]}


def main(epochs: int = 6) -> None:
    """Train, prepare, let the Trainer train and write checkpoints, and export the file."""
    torch.manual_seed(0)
    x, y, test_x, test_y = load_data()
    network = make_network()
    train(network, x, y)
    print(f"dense: top-1 {top1(network, test_x, test_y):.2f}")

    prepared = opq.prepare(network, ratio=30)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=50,
            learning_rate=1e-3,
            use_cpu=True,
            report_to=[],
            save_strategy="epoch",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        budget = BudgetCallback(prepared)
        Trainer(Model(network), arguments, train_dataset=Digits(x, y), callbacks=[budget]).train()
        path = Path(folder) / "digits.opq"
        compressed = prepared.export(x.split(50))
        compressed.save(path)
        loaded = opq.load(make_network(), path)
    print(f"finetuned: top-1 {top1(loaded, test_x, test_y):.2f}; {compressed}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
