"""Calibration of unusual networks: activations in place, aliases, layers that do not run, loaders with labels."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import opq
import opq.torch


@pytest.fixture
def inputs():
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def convolutions(inplace):
    """A network with an activation between a convolution and its batch norm, and one between two convolutions."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    with torch.no_grad():
        model[2].running_mean.uniform_(0.0, 0.5)
        model[2].running_var.uniform_(0.2, 1.0)
    return model.eval()


@pytest.mark.slow
def test_activations_in_place_make_no_difference(inputs):
    """An activation that overwrites its input gives the same file as one that does not."""
    plain, inplace = (opq.calibrate(convolutions(inplace), inputs) for inplace in (False, True))
    assert plain.sensitivity == inplace.sensitivity
    assert plain.compress(ratio=5).data == inplace.compress(ratio=5).data


class Aliased(nn.Module):
    """Two layers under two names each, and a third that does not run."""

    def __init__(self, aliased=True):
        super().__init__()
        self.first, self.second = nn.Linear(24, 64), nn.Linear(64, 10)
        if aliased:
            self.stages = nn.ModuleList([self.first, self.second])
        self.spare = nn.Linear(64, 40)

    def forward(self, x):
        """Logits."""
        return self.second(torch.relu(self.first(x)))


def test_aliases_have_the_sensitivity_of_their_weights():
    """A weight under two names has one sensitivity, one step and one section; the outputs stay close."""
    torch.manual_seed(0)
    model, inputs = Aliased().eval(), torch.randn(200, 24)
    calibration = opq.calibrate(model, inputs)
    made = calibration.compress(ratio=5)
    for name, alias in (("first.weight", "stages.0.weight"), ("second.weight", "stages.1.weight")):
        assert calibration.sensitivity[name] == calibration.sensitivity[alias]
    with opq.OpqFile(made.data) as file:
        for name, alias in (("first.weight", "stages.0.weight"), ("second.weight", "stages.1.weight")):
            assert file[name].codebook == file[alias].codebook
        assert len({entry.section for entry in file.entries if entry.is_weight}) == 3
    again = Aliased().eval()
    again.load_state_dict(opq.torch.load(made.data))
    with torch.no_grad():
        before, after = model(inputs), again(inputs)
    assert float((before - after).square().mean() / before.square().mean()) < 0.02


def test_unused_weights_have_the_smallest_sensitivity():
    """A layer that does not run has no finer step than the finest of the others."""
    torch.manual_seed(0)
    model = Aliased(aliased=False).eval()
    calibration = opq.calibrate(model, torch.randn(200, 24))
    assert calibration.sensitivity["spare.weight"] == min(calibration.sensitivity.values())
    with opq.OpqFile(calibration.compress(ratio=6).data) as file:
        steps = {name: file[name].codebook.step for name in calibration.sensitivity}
    assert max(steps.values()) < 32.0 * min(steps.values())


class Wrapped(nn.Module):
    """Returns its logits in another form."""

    def __init__(self, inner, wrap):
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x):
        """`wrap` of the logits."""
        return self.wrap(self.inner(x))


def test_loaders_with_labels_and_outputs_with_logits_are_accepted(inputs):
    """Batches of inputs and labels, and outputs with a .logits, give what tensors give."""
    plain = opq.calibrate(convolutions(False), inputs)
    loader = DataLoader(TensorDataset(inputs, torch.zeros(len(inputs))), batch_size=20)
    wrapped = opq.calibrate(Wrapped(convolutions(False), lambda x: SimpleNamespace(logits=x)), loader)
    assert {f"inner.{name}": cost for name, cost in plain.sensitivity.items()} == wrapped.sensitivity


def test_layers_without_gradients_are_calibrated(inputs):
    """A backbone that runs without gradients is compressed; its weights have the smallest sensitivity."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(192, 32), nn.Linear(32, 4)

        def forward(self, x):
            with torch.no_grad():
                x = torch.relu(self.body(x.flatten(1)))
            return self.head(x)

    calibration = opq.calibrate(Frozen(), inputs)
    assert calibration.sensitivity["body.weight"] == calibration.sensitivity["head.weight"]
    opq.verify(calibration.compress(ratio=5).data)


def test_batches_of_several_lengths_are_accepted():
    """Batches may differ in shape, as those of texts and of sounds do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 10))
    calibration = opq.calibrate(model, [torch.randn(4, 4, length) for length in (6, 9, 14, 20, 25)])
    assert set(calibration.curvatures) == {"0.weight", "4.weight"}
    opq.verify(calibration.compress(ratio=3).data)


def test_a_network_without_outputs_of_floating_point_is_refused(inputs):
    """A network that returns class numbers has nothing to compare."""
    with pytest.raises(opq.CalibrationError, match="must return tensors of floating point, got Tensor"):
        opq.calibrate(Wrapped(convolutions(False), lambda x: x.argmax(1)), inputs)


def test_a_network_without_gradients_is_refused(inputs):
    """If no output depends on a weight by a gradient, an error says so."""
    with pytest.raises(opq.CalibrationError, match="depend on no weight"):
        opq.calibrate(Wrapped(convolutions(False), lambda x: x.detach()), inputs)
