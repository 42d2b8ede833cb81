"""Where a network runs, and in which precision."""

import pytest
import torch
from torch import nn

import opq
from opq.training.trainer import Training
from opq.training.device import device_of

MACHINES = {
    "Sapphire Rapids": (("avx512_f", "avx512_bf16", "avx512_fp16", "amx_bf16"), torch.bfloat16),
    "Zen 4": (("avx512_f", "avx512_bf16"), torch.bfloat16),
    "Sapphire Rapids, its AMX hidden by a virtual machine": (("avx512_f", "avx512_bf16", "avx512_fp16"), torch.float32),
    "Skylake": (("avx512_f",), torch.float32),
    "one that tells nothing": ((), torch.float32),
}


class Looking(nn.Module):
    """A layer that notes in which dtype it computes."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 3), []

    def forward(self, x):
        """Logits."""
        outputs = self.layer(x)
        self.seen.append(outputs.dtype)
        return outputs


@pytest.mark.parametrize(("found", "kind"), MACHINES.values(), ids=MACHINES)
def test_networks_run_in_what_is_faster_there(monkeypatch, found, kind):
    """Trained or evaluated, a network computes in bfloat16 on processors where that was measured to be faster (docs/log.md), in
    float32 on all others; its weights stay float32.
    """
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(found, True), raising=False)
    model = Looking()
    batches = [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
    Training(model, batches, 1, opq.TrainingConfig()).run()
    opq.evaluate(model, batches)
    assert model.seen == [kind, kind]
    assert model.layer.weight.dtype == torch.float32


def test_a_network_runs_where_its_tensors_are():
    """On the device of its parameters, else of its buffers, else on the processor."""
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")
