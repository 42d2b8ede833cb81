"""One of several processes that finetune one network; run by test_processes.py under torchrun.

Each begins with weights of its own, as if the user had forgotten to seed; what it ends with goes into FOLDER/rank_N.pt.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from small_networks import make
from torch.utils.data import DataLoader, TensorDataset

import opq
from opq.training.preparing import codebooks

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
        """The masks of this process after the epoch."""
        masks.update({weight.names[0]: weight.codebook.mask.clone() for weight in codebooks(network)})
        return {}

    if prepare:
        opq.prepare(model, ratio=6.0)
    loader = DataLoader(data, 8, shuffle=True)
    finetuned = opq.finetune(model, loader, folder=folder / name, watch=remember, accelerator=accelerator, **options)
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"masks": masks, "values": values, "file": finetuned.compressed.data}


ends = {"prepared": train("prepared", True, epochs=2), "open": train("open", False, epochs=3, open_epochs=2, ratio=6.0)}
torch.save({"processes": accelerator.num_processes, **ends}, folder / f"rank_{accelerator.process_index}.pt")
accelerator.end_training()
