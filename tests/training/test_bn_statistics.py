"""Batch-norms in canonical form: they can be trained on."""

import pytest
import torch
from small_networks import make
from torch import nn

import opq
import opq.torch
from opq.training.bn_statistics import is_canonical, refresh_batch_norm, restore_statistics


def canonical_network(eps):
    """A network whose batch-norm has seen inputs and was trained, saved with canonical batch-norms, and inputs for it."""
    model, inputs = make("convolutions")
    model.norm.eps = eps
    with torch.no_grad():
        model.norm.weight.uniform_(-2.0, 2.0)
        model.norm.bias.normal_()
        for _ in range(50):
            model.train()(inputs)
    file = opq.compress(model.eval(), ratio=3, batch_norm="canonical").data
    opq.torch.load_model(model, file)
    return model.eval(), inputs, file


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_restored_statistics_keep_the_function(eps):
    """A network computes the same before and after, to a few units of rounding, and has statistics of its own again."""
    model, inputs, _ = canonical_network(eps)
    before = model(inputs)
    assert is_canonical(model.norm)
    restore_statistics(model, [inputs], torch.device("cpu"))
    assert not is_canonical(model.norm)
    torch.testing.assert_close(model(inputs), before, rtol=1e-4, atol=1e-5)


def test_restored_statistics_hold_while_training():
    """On the inputs they were measured on, a batch-norm in training mode computes what it does when evaluated."""
    model, inputs, _ = canonical_network(1e-5)

    def distance():
        at_rest = model.eval().norm(model.plain(inputs))
        return (model.train().norm(model.plain(inputs)) - at_rest).abs().max() / at_rest.abs().max()

    assert distance() > 0.2
    opq.torch.load_model(model, canonical_network(1e-5)[2])  # training mode has moved the statistics
    restore_statistics(model, [inputs], torch.device("cpu"))
    assert distance() < 0.02


def test_a_file_with_canonical_batch_norms_is_a_start():
    """Finetuning from it gives a file that has them too, within its size."""
    model, inputs, file = canonical_network(1e-5)
    finetuned = opq.finetune(model, [inputs], epochs=1, start=file, teacher=nn.Sequential(nn.Flatten(), nn.Linear(128, 10)))
    assert is_canonical(model.norm)
    assert finetuned.compressed.file_bytes <= len(file)


def test_other_batch_norms_stay():
    """A batch-norm with statistics, or without weight and bias, is left alone."""
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4))
    model[1].running_mean[0] = 1.0
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    restore_statistics(model, [torch.randn(8, 4)], torch.device("cpu"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_statistics_of_what_does_not_run_stay():
    """Estimated anew are those of batch-norms that the inputs reach; the others keep what they have."""

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.rests = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.used(x)

    model = TwoHeads()
    for norm in (model.used, model.rests):
        norm(torch.randn(8, 4) + 3.0)
    before = {name: buffer.clone() for name, buffer in model.rests.named_buffers()}
    inputs = torch.randn(64, 4)
    refresh_batch_norm(model, [inputs], torch.device("cpu"))
    torch.testing.assert_close(model.used.running_mean, inputs.mean(0))
    for name, buffer in model.rests.named_buffers():
        assert torch.equal(buffer, before[name])
