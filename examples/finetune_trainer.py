"""Finetuning with the Hugging Face Trainer: a model that is prepared trains like any other.

python examples/finetune_trainer.py
"""

from __future__ import annotations

import sys
import tempfile

import torch
from digits import load_data, make_network, top1, train
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import opq
import opq.torch


class Model(nn.Module):
    """Keyword arguments to loss and logits, as the Trainer wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss where labels are given."""
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
    """Train, prepare, let the Trainer train and keep checkpoints; then the file."""
    torch.manual_seed(0)
    x, y, test_x, test_y = load_data()
    network = make_network()
    train(network, x, y)
    print(f"dense: top-1 {top1(network, test_x, test_y):.2f}")

    plan = opq.plan(network, ratio=30)
    opq.prepare(network, plan)
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
        Trainer(Model(network), arguments, train_dataset=Digits(x, y)).train()
    # Codes have spread while they trained: no epoch more, and the file is within its budget. `opq.convert` would end without.
    finetuned = opq.finetune(network, list(zip(x.split(50), y.split(50), strict=True)), epochs=0, budget=plan.dense_bytes // 30)
    print(f"finetuned: top-1 {top1(network, test_x, test_y):.2f}; {finetuned}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
