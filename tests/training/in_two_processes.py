"""One of several processes that finetune one network; run by test_processes.py under torchrun.

Each begins with weights of its own, as if the user had forgotten to seed; what it ends with goes into FOLDER/rank_N.pt.
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from interruptions import InterruptionError
from small_networks import make
from torch.utils.data import DataLoader, TensorDataset

import opq
from opq.training.prepared_model import codebooks

folder = Path(sys.argv[1])
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)


def train(name, prepare, **options):
    """Finetune a network, its masks fixed from the start or open at first; what this process ends with."""
    model, _ = make("convolutions", seed=accelerator.process_index)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(32, 2, 8, 8, generator=generator), torch.randint(10, (32,), generator=generator))
    masks = {}

    def remember(network):
        """The masks of the first process, which alone watches, after the epoch."""
        masks.update({weight.names[0]: weight.codebook.mask.clone() for weight in codebooks(network)})
        return {}

    if prepare:
        opq.prepare(model, ratio=6.0)
    loader = DataLoader(data, 8, shuffle=True)
    finetuned = opq.finetune(model, loader, folder=folder / name, watch=remember, accelerator=accelerator, **options)
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"masks": masks, "values": values, "file": finetuned.compressed.data}


def interrupt(text, number, steps):
    """End both processes in the middle of the second epoch."""
    if text.startswith("epoch 2") and number == 1:
        raise InterruptionError


ends = {"prepared": train("prepared", True, epochs=2), "open": train("open", False, epochs=3, mask_update_epochs=2, ratio=6.0)}
parts = {"epochs": 3, "open_epochs": 2, "ratio": 6.0}
with suppress(InterruptionError):
    train("parts", False, progress=interrupt, **parts)
ends["parts"] = train("parts", False, **parts)
try:
    alone = DataLoader(torch.randn(32, 2, 8, 8), 32, drop_last=True)
    opq.finetune(make("convolutions")[0], alone, epochs=1, ratio=6.0, teacher="dense", accelerator=accelerator)
    ends["few"] = ""
except opq.TrainingError as error:
    ends["few"] = str(error)
torch.save({"processes": accelerator.num_processes, **ends}, folder / f"rank_{accelerator.process_index}.pt")
accelerator.end_training()
