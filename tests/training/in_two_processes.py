"""One of several processes that finetune one network; test_processes.py runs it under torchrun.

Each process starts with different weights, as if the user had forgotten a seed. Its results go into FOLDER/rank_N.pt.
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from interruptions import InterruptionError
from small_networks import make, to_ratio
from torch.utils.data import DataLoader, TensorDataset

import opq
from opq.training.attach import prepared_weights

folder = Path(sys.argv[1])
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)


def train(name, training, *, prepare=False, progress=False):
    """Finetune a network, prepared or dense. Returns the masks, values and file with which this process ends."""
    model, _ = make("convolutions", seed=accelerator.process_index)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(32, 2, 8, 8, generator=generator), torch.randint(10, (32,), generator=generator))
    masks = {}

    def record_masks(network):
        """Keep the masks after the epoch; only the first process calls this."""
        masks.update({weight.names[0]: weight.codebook.mask.clone() for weight in prepared_weights(network)})
        return {}

    start = None if prepare else to_ratio(6.0)
    finetuned = opq.finetune(
        opq.prepare(model, ratio=6.0, rounding="deadzone") if prepare else model,
        DataLoader(data, 8, shuffle=True),
        start,
        training,
        folder=folder / name,
        on_epoch_end=record_masks,
        accelerator=accelerator,
        progress=progress,
    )
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"masks": masks, "values": values, "file": finetuned.compressed.data}


def interrupt(stage, finished, total):
    """End both processes in the middle of the second epoch."""
    if stage.startswith("epoch 2") and finished == 1:
        raise InterruptionError


recomputed = opq.TrainingConfig(epochs=3, mask_update_epochs=2)
ends = {
    "prepared": train("prepared", opq.TrainingConfig(epochs=2), prepare=True),
    "recomputed": train("recomputed", recomputed),
}
with suppress(InterruptionError):
    train("resumed", recomputed, progress=interrupt)
ends["resumed"] = train("resumed", recomputed)
try:
    single = DataLoader(torch.randn(32, 2, 8, 8), 32, drop_last=True)
    opq.finetune(
        make("convolutions")[0],
        single,
        to_ratio(6.0),
        opq.TrainingConfig(epochs=1),
        teacher="dense",
        accelerator=accelerator,
    )
    ends["few"] = ""
except opq.TrainingError as error:
    ends["few"] = str(error)
torch.save({"processes": accelerator.num_processes, **ends}, folder / f"rank_{accelerator.process_index}.pt")
accelerator.end_training()
