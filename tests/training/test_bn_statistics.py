"""Batch-norm statistics: networks with folded batch norms can be trained, and statistics can be estimated anew."""

import pytest
import torch
from small_networks import make
from torch import nn

import opq
import opq.torch
from opq.training.bn_statistics import has_folded_statistics, refresh_batch_norm, restore_statistics


def folded_network(eps):
    """A trained network loaded from a file with folded batch norms; inputs for it; and the file."""
    model, inputs = make("convolutions")
    model.norm.eps = eps
    with torch.no_grad():
        model.norm.weight.uniform_(-2.0, 2.0)
        model.norm.bias.normal_()
        for _ in range(50):
            model.train()(inputs)
    file = opq.compress(model.eval(), ratio=3, batch_norm="folded").data
    opq.torch.load_model(model, file)
    return model.eval(), inputs, file


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_restored_statistics_keep_the_function(eps):
    """The network computes the same function as before, up to rounding, and its batch norms are no longer folded."""
    model, inputs, _ = folded_network(eps)
    before = model(inputs)
    assert has_folded_statistics(model.norm)
    restore_statistics(model, [inputs], torch.device("cpu"))
    assert not has_folded_statistics(model.norm)
    torch.testing.assert_close(model(inputs), before, rtol=1e-4, atol=1e-5)


def test_restored_statistics_hold_in_training():
    """On the inputs they were measured on, a batch norm computes the same in training mode and in evaluation mode."""
    model, inputs, _ = folded_network(1e-5)

    def distance():
        evaluated = model.eval().norm(model.plain(inputs))
        return (model.train().norm(model.plain(inputs)) - evaluated).abs().max() / evaluated.abs().max()

    assert distance() > 0.2
    opq.torch.load_model(model, folded_network(1e-5)[2])  # training mode has moved the statistics
    restore_statistics(model, [inputs], torch.device("cpu"))
    assert distance() < 0.02


def test_finetuning_can_start_from_a_file_with_folded_batch_norms():
    """The finetuned file has folded batch norms too, and is within its size."""
    model, inputs, file = folded_network(1e-5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(128, 10))
    finetuned = opq.finetune(model, [inputs], file, opq.TrainingConfig(epochs=1), teacher=teacher)
    assert has_folded_statistics(model.norm)
    assert finetuned.compressed.file_bytes <= len(file)


def test_other_batch_norms_stay():
    """A batch norm that is not folded, or without weight and bias, is not changed."""
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4))
    model[1].running_mean[0] = 1.0
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    restore_statistics(model, [torch.randn(8, 4)], torch.device("cpu"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


class TwoHeads(nn.Module):
    """Runs only one of its two batch norms."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        """The output of the first batch norm."""
        return self.used(x)


def test_statistics_of_unused_layers_stay():
    """Only batch norms that the inputs reach get new statistics; the others keep theirs."""
    model = TwoHeads()
    for norm in (model.used, model.unused):
        norm(torch.randn(8, 4) + 3.0)
    before = {name: buffer.clone() for name, buffer in model.unused.named_buffers()}
    inputs = torch.randn(64, 4)
    refresh_batch_norm(model, [inputs], torch.device("cpu"))
    torch.testing.assert_close(model.used.running_mean, inputs.mean(0))
    for name, buffer in model.unused.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("measure", [refresh_batch_norm, restore_statistics])
def test_every_module_keeps_its_mode(measure):
    """A module that was in evaluation mode inside a network in training mode still is, and the reverse."""
    for training in (False, True):
        model = TwoHeads().train(training)
        model.used.train(not training)
        measure(model, [torch.randn(8, 4)], torch.device("cpu"))
        assert [module.training for module in model.modules()] == [training, not training, training]
