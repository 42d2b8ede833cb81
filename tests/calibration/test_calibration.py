"""Laws of calibrated compression, on small random networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import opq
import opq.torch
from opq.calibration import batch_norm_statistics, synthetic_images
from opq.calibration.calibrate import calibrate
from opq.errors import CalibrationError, TargetError


class Small(nn.Module):
    """A convolution and a depthwise one with batch norms, one whose output is used twice, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 48, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(48)
        self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.depthwise_norm = nn.BatchNorm2d(48, eps=1e-3)
        self.shared = nn.Conv2d(48, 48, 1)
        self.shared_norm = nn.BatchNorm2d(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        """Logits."""
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.depthwise_norm(self.depthwise(x)))
        y = self.shared(x)
        x = torch.relu(self.shared_norm(y)) + 0.5 * y  # its scale matters
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Small()
    for norm in batch_norm_statistics.batch_norms_of(model).values():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    synthetic_images.recompute_statistics(model.eval(), ((torch.randn(64, 3, 8, 8),), {}))
    return model


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def divergence(model, other, inputs):
    with torch.no_grad():
        return float((model(inputs) - other(inputs)).square().mean())


def loaded(compressed, tmp_path):
    path = tmp_path / "file.opq"
    compressed.save(path)
    model = Small()
    opq.torch.load_model(model, path)
    return model.eval()


@pytest.mark.slow
def test_a_calibrated_file_meets_its_target(network, inputs):
    """The file takes at most the requested bytes and at least 99.5% of them, even if these are a few thousand."""
    dense = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    for ratio in (3.0, 4.0):
        made = calibrate(network, inputs).compress(ratio=ratio)
        assert 0.995 * dense / ratio <= made.file_bytes <= dense / ratio
        assert made.plan is None


@pytest.mark.slow
def test_a_fixed_layer_keeps_its_scales_and_step(network, inputs):
    """A layer with a fixed step is quantized as its plan says, scales included, and the layers behind it compensate."""
    fixed = opq.LayerConfig(step=0.125, scales="rows")
    made = calibrate(network, inputs[:32]).compress(size=5000, layers={"head.weight": fixed})
    with opq.OpqFile(made.data) as file:
        assert file["head.weight"].codebook.step == 0.125
        assert file["head.weight"].codebook.rows.any()


@pytest.mark.slow
def test_calibrated_outputs_are_closer_at_the_same_bytes(network, inputs, tmp_path):
    """At equal bytes a calibrated network is closer to the dense one than a network compressed from the weights alone."""
    made = calibrate(network, inputs).compress(ratio=4)
    plain = opq.compress(network, size=made.file_bytes)
    fresh = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    calibrated = divergence(network, loaded(made, tmp_path), fresh)
    assert calibrated < 0.5 * divergence(network, loaded(plain, tmp_path), fresh)


@pytest.mark.slow
def test_synthetic_images_serve_without_data(network, tmp_path):
    """Calibrated on synthetic images, a network is closer on other inputs than one compressed from the weights alone."""
    made = calibrate(network, shape=(3, 8, 8)).compress(ratio=4)
    plain = opq.compress(network, size=made.file_bytes)
    fresh = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert divergence(network, loaded(made, tmp_path), fresh) < divergence(network, loaded(plain, tmp_path), fresh)


@pytest.mark.slow
def test_calibration_changes_no_network_and_repeats(network, inputs):
    """The network is unchanged, and the same inputs give the same bytes."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = (calibrate(network, inputs[:32]).compress(size=4000).data for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_what_the_user_fixes_stays_fixed(network, inputs):
    """A fixed step is the file's, an excluded weight is stored as it is, and a higher sensitivity makes the step finer."""
    calibration = calibrate(network, inputs[:32])
    fixed = {"head.weight": opq.LayerConfig(step=0.125)}
    with opq.OpqFile(calibration.compress(size=9000, layers=fixed, exclude=["conv.weight"]).data) as file:
        assert file["head.weight"].codebook.step == 0.125
        np.testing.assert_array_equal(file["conv.weight"], network.conv.weight.detach().numpy())
    wish = 50.0 * calibration.sensitivity["shared.weight"]
    plain, favoured = (
        shared_step_and_zeros(calibration.compress(ratio=6.0, layers={"shared.weight": opq.LayerConfig(sensitivity=value)}))
        for value in (None, wish)
    )
    assert favoured[0] < 0.5 * plain[0]
    assert favoured[1] < plain[1]


def shared_step_and_zeros(compressed):
    """The step of shared.weight in a file, and the number of its zeros."""
    with opq.OpqFile(compressed.data) as file:
        return file["shared.weight"].codebook.step, int((file["shared.weight"].codes == 0).sum())


@pytest.mark.slow
def test_layer_configs_add_to_what_was_measured(network, inputs):
    """A layer config that fixes nothing changes nothing. Of several sensitivities the last one counts, by glob or by name."""
    calibration = calibrate(network, inputs[:8])
    measured = calibration.sensitivity
    plain = calibration.compress(ratio=4.0).data
    for layers in (
        {"shared.weight": opq.LayerConfig()},
        {"shared.weight": opq.LayerConfig(sensitivity=measured["shared.weight"])},
        {"shared.*": opq.LayerConfig(sensitivity=9.0), "shared.weight": opq.LayerConfig(sensitivity=measured["shared.weight"])},
    ):
        assert calibration.compress(ratio=4.0, layers=layers).data == plain


@pytest.mark.slow
def test_a_config_is_its_keywords(network, inputs):
    """A CompressionConfig gives the bytes that the same settings give as keywords; unknown keywords are a TypeError."""
    calibration = calibrate(network, inputs[:8])
    config = opq.CompressionConfig(target=opq.Ratio(4.0), exclude=("head.*",), auxiliary="float16")
    by_keywords = calibration.compress(ratio=4.0, exclude=["head.*"], auxiliary="float16")
    assert calibration.compress(config).data == by_keywords.data
    with pytest.raises(TypeError, match="both a config and 'ratio'"):
        calibration.compress(config, ratio=4.0)
    with pytest.raises(TypeError, match="'ratoi'; did you mean 'ratio'"):
        calibration.compress(ratoi=4.0)
    with pytest.raises(opq.ConfigError, match="auxiliary must be one of"):
        calibration.compress(ratio=4.0, auxiliary="half")


@pytest.mark.slow
def test_fine_steps_leave_the_function_unchanged(network, inputs, tmp_path):
    """With many bytes the calibrated network is the dense one, except for the precision of its batch norms."""
    model = loaded(calibrate(network, inputs).compress(ratio=2.5), tmp_path)
    with torch.no_grad():
        variance = float(network(inputs).var())
    assert divergence(network, model, inputs) < 1e-4 * variance


def test_synthetic_images_have_mean_0_and_variance_1():
    """Mean and variance are those over all images; an equal seed gives equal images."""
    images = synthetic_images.synthesize_images(4, (3, 16, 16), seed=0)
    assert torch.equal(images, synthetic_images.synthesize_images(4, (3, 16, 16), seed=0))
    assert math.isclose(float(images.mean()), 0.0, abs_tol=1e-5)
    assert np.isclose(float(images.std()), 1.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "unknown what the network takes"),
        ({"inputs": torch.randn(2, 3, 8, 8), "shape": (3, 8, 8)}, "give either inputs"),
        ({"inputs": torch.zeros(0, 3, 8, 8)}, "at least one sample"),
        ({"inputs": torch.randn(2, 5, 8, 8)}, "does not run"),
        ({"shape": (1, 8, 8)}, "does not run"),
        ({"shape": (3, 0)}, "positive integers, got"),
    ],
)
def test_unsuitable_inputs_are_refused(network, arguments, words):
    """Inputs that do not suit the network, and missing or contradicting inputs, each raise an error."""
    with pytest.raises(CalibrationError, match=words):
        calibrate(network, **arguments)


def test_targets_without_bytes_are_refused(network, inputs):
    """Calibrated compression needs a byte target, not sparsity and bits, and not lossless."""
    calibration = calibrate(network, inputs[:8])
    for target in ({"sparsity": 0.5, "bits": 4}, {"lossless": True}):
        with pytest.raises(TargetError, match="a ratio or a size"):
            calibration.compress(**target)
    with pytest.raises(TargetError, match="out of reach"):
        calibration.compress(ratio=1.1)
    with pytest.raises(opq.ConfigError, match=r"cost .* must be 'squared'"):
        calibration.compress(ratio=4, cost="balanced")


@pytest.mark.slow
def test_folded_batch_norms_use_the_eps_of_their_modules(inputs):
    """A calibrated file with folded batch norms computes the same as one without, whatever the eps of a module."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.BatchNorm2d(3, eps=0.5), nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    nn.init.uniform_(model[0].weight, 0.5, 1.5)
    model[0].running_var.uniform_(0.05, 0.2)
    found = {}
    for form in ("keep", "folded"):
        other = nn.Sequential(nn.BatchNorm2d(3, eps=0.5), nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
        data = calibrate(model.eval(), inputs[:32]).compress(ratio=4, batch_norm=form).data
        opq.torch.load_model(other, data)
        found[form] = divergence(model, other.eval(), inputs)
    assert found["folded"] < 2.0 * found["keep"] + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_are_folded_by_default(training, inputs):
    """Those of a calibrated network are, also if it is in training, because its evaluation is what is calibrated."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 36, 10))
    model[0].running_mean.normal_()
    calibration = calibrate(model.train(training), inputs[:16])
    for options, folded in (({}, True), ({"batch_norm": "keep"}, False)):
        back = opq.torch.load(calibration.compress(ratio=5, **options).data)
        assert bool(back["0.running_mean"].any()) != folded
    assert model.training == training


def test_recomputed_statistics_are_those_of_the_inputs():
    """After each batch norm, channels have its bias as mean and the magnitude of its weight as standard deviation."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.ReLU()
    ).eval()
    norms = batch_norm_statistics.batch_norms_of(model)
    for norm in norms.values():
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.constant_(norm.running_mean, 7.0)
    momenta = [norm.momentum for norm in norms.values()]
    inputs = 3.0 * torch.randn(64, 3, 10, 10) + 1.0
    synthetic_images.recompute_statistics(model, ((inputs,), {}))
    assert [norm.momentum for norm in norms.values()] == momenta
    assert not any(norm.training for norm in norms.values())
    found = {}
    for name, norm in norms.items():
        norm.register_forward_hook(lambda _, __, output, name=name: found.update({name: output.clone()}))
    with torch.no_grad():
        model(inputs)
    for name, norm in norms.items():
        values = found[name].transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), norm.bias.detach(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(values.std(1), norm.weight.detach().abs(), rtol=1e-3, atol=1e-3)


def test_a_corrected_network_keeps_its_buffers(inputs):
    """With batch norms too, a calibrated file tells buffers, which are exact, from parameters, whatever their names."""

    class Shifted(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.Flatten(), nn.Linear(24 * 36, 40))
            self.register_buffer("scale", torch.rand(40, generator=torch.Generator().manual_seed(1)))
            self.shift = nn.Parameter(torch.rand(40, generator=torch.Generator().manual_seed(2)))

        def forward(self, x):
            return super().forward(x) * self.scale + self.shift

    torch.manual_seed(0)
    model = Shifted()
    data = calibrate(model, inputs[:16]).compress(ratio=4).data
    assert torch.equal(opq.torch.load(data)["scale"], model.scale)
    assert not torch.equal(opq.torch.load(data)["shift"], model.shift)
