"""On which device a network runs, and in which precision."""

import pytest
import torch
from torch import nn

import opq
from opq.training.device import device_of
from opq.training.trainer import Trainer

MACHINES = {
    "Sapphire Rapids": (("avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16"), torch.bfloat16),
    "Zen 4": (("avx512_f", "avx512_bf16"), torch.bfloat16),
    "Sapphire Rapids, its AMX hidden by a virtual machine": (("avx512_f", "avx512_bf16", "avx512_fp16"), torch.float32),
    "Skylake": (("avx512_f",), torch.float32),
    "no capability reported": ((), torch.float32),
}


class Recording(nn.Module):
    """A layer that records in which dtype it computes."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 3), []

    def forward(self, x):
        """Logits."""
        outputs = self.layer(x)
        self.seen.append(outputs.dtype)
        return outputs


@pytest.mark.parametrize(("capabilities", "dtype"), MACHINES.values(), ids=MACHINES)
def test_networks_run_in_the_faster_precision(monkeypatch, capabilities, dtype):
    """In training and evaluation a network computes in bfloat16 on processors on which that was measured to be faster
    (docs/log.md), and in float32 on all others; its weights stay float32.
    """
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(capabilities, True), raising=False)
    model = Recording()
    batches = [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
    Trainer(model, batches, opq.TrainingConfig(epochs=1)).run()
    opq.evaluate(model, batches)
    assert model.seen == [dtype, dtype]
    assert model.layer.weight.dtype == torch.float32


def test_the_device_of_a_network_is_that_of_its_tensors():
    """The device is that of the parameters, else of the buffers, else the CPU."""
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")
