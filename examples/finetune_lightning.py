"""Finetune with Lightning: a prepared module trains like any other, and a callback keeps the bytes of its file.

python examples/finetune_lightning.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lightning
import torch
from digits import load_data, make_network, top1, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import opq
from opq.callbacks.lightning import BudgetCallback


class Classifier(lightning.LightningModule):
    """A network and its loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        inputs, labels = batch
        return nn.functional.cross_entropy(self.network(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any optimizer can be used."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)


def main(epochs: int = 6) -> None:
    """Train, prepare, fit, and export the file."""
    lightning.seed_everything(0)
    x, y, test_x, test_y = load_data()
    network = make_network()
    train(network, x, y)
    print(f"dense: top-1 {top1(network, test_x, test_y):.2f}")

    prepared = opq.prepare(network, ratio=30)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[BudgetCallback(prepared)],
        )
        loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
        trainer.fit(Classifier(network), loader)
        path = Path(folder) / "digits.opq"
        compressed = prepared.export(loader)
        compressed.save(path)
        loaded = opq.load(make_network(), path)
    print(f"finetuned: top-1 {top1(loaded, test_x, test_y):.2f}; {compressed}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
