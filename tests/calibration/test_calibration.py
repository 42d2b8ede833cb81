"""Laws of calibrated compression, on small random networks."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import opq
import opq.torch
from opq.calibration import batch_norm_pairs, fisher, gptq, paired_forward, synthetic_images
from opq.calibration.calibrate import calibrate
from opq.errors import CalibrationError, TargetError
from opq.functional import measure
from opq.rate_distortion.scales import measured_rows


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
    for norm in batch_norm_pairs.find_batch_norms(model).values():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    return synthetic_images.recompute_statistics(model, torch.randn(64, 3, 8, 8)).eval()


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


def test_only_batch_norms_whose_scale_is_free_are_paired(network, inputs):
    """A layer whose output is also used elsewhere is in no pair. The others are found; nothing is changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert batch_norm_pairs.find_pairs(network, inputs[:2]) == {"conv": "norm", "depthwise": "depthwise_norm"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_a_calibrated_file_meets_its_target(network, inputs):
    """The file takes at most the requested bytes and at least 99.5% of them, even if these are a few thousand."""
    dense = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    for ratio in (3.0, 4.0):
        made = calibrate(network, inputs).compress(ratio=ratio)
        assert 0.995 * dense / ratio <= made.file_bytes <= dense / ratio
        assert made.plan is None


@pytest.mark.slow
def test_a_calibrated_file_keeps_the_scales_of_rows(network, inputs, tmp_path):
    """Layers whose outputs no batch norm takes have the measured scales of their rows; the others have no scales."""
    uneven = copy.deepcopy(network)
    with torch.no_grad():
        for layer in (uneven.head, uneven.shared):
            factors = torch.exp2(torch.linspace(-3.0, 3.0, len(layer.weight)))
            layer.weight.mul_(factors[:, None] if layer.weight.ndim == 2 else factors[:, None, None, None])
    made = calibrate(uneven, inputs[:32]).compress(size=5000, scales="rows")
    assert 4975 <= made.file_bytes <= 5000
    opq.verify(made.data)
    model = loaded(made, tmp_path)
    with opq.OpqFile(made.data) as file:
        for name in ("head", "shared"):
            rows = measured_rows(measure(uneven.get_submodule(name).weight.detach().numpy()).channel_scales)
            assert file[f"{name}.weight"].codebook.rows.tolist() == rows.tolist()
            assert np.array_equal(model.get_submodule(name).weight.detach().numpy(), file.array(f"{name}.weight"))
        assert all(isinstance(file[f"{name}.weight"].codebook, opq.UniformCodebook) for name in ("conv", "depthwise"))
    assert divergence(uneven, model, inputs) < 0.1 * float(uneven(inputs).detach().square().mean())


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


def test_a_weight_that_two_layers_share_is_not_reconstructed():
    """Layers that share a weight have one codebook, so neither is rounded against its own outputs."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[2].weight = model[0].weight
    assert set(batch_norm_pairs.find_layers(model)) == {"4"}


@pytest.mark.slow
def test_fine_steps_leave_the_function_unchanged(network, inputs, tmp_path):
    """With many bytes the calibrated network is the dense one, except for the precision of its batch norms."""
    model = loaded(calibrate(network, inputs).compress(ratio=2.5), tmp_path)
    with torch.no_grad():
        variance = float(network(inputs).var())
    assert divergence(network, model, inputs) < 1e-4 * variance


@pytest.mark.slow
def test_coarse_steps_leave_means_and_slopes_unchanged(network, inputs, tmp_path):
    """With few bytes, each channel after a paired batch norm has its dense mean, and the least-squares slope from the new
    output to the dense one is 1: gain and shift compensate the rounding.
    """
    calibration = calibrate(network, inputs)
    model = loaded(calibration.compress(ratio=7.5), tmp_path)

    def outputs(network, name):
        found = []
        handle = network.get_submodule(name).register_forward_hook(lambda _, __, output: found.append(output.clone()))
        with torch.no_grad():
            network.eval()(inputs)
        handle.remove()
        return found[0].double().transpose(0, 1).flatten(1)

    for name in calibration.batch_norms.values():
        dense, own = outputs(network, name), outputs(model, name)
        assert float((dense - own).square().mean()) > 0.01 * float(dense.var())  # the steps are coarse
        torch.testing.assert_close(own.mean(1), dense.mean(1), rtol=0.0, atol=0.05)
        centred = own - own.mean(1, keepdim=True)
        slopes = (centred * dense).sum(1) / centred.square().sum(1)
        torch.testing.assert_close(slopes, torch.ones_like(slopes), rtol=0.0, atol=0.05)


def test_compensation_beats_rounding_to_nearest():
    """With correlated inputs, compensated codes have less output error than codes rounded to nearest, at equal steps."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(32, 24, generator=generator, dtype=torch.float64)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    moments = (mixing @ mixing.T)[None]
    steps, ones = torch.full((32,), 0.5, dtype=torch.float64), torch.ones(32, dtype=torch.float64)
    codes = gptq.quantize_rows(weight, moments, ones, steps, 0.0)

    def error(codes):
        left = weight - 0.5 * codes
        return float((left @ moments[0] * left).sum())

    assert error(codes) < 0.5 * error(torch.round(weight / 0.5))


def test_a_larger_lambda_prunes_more():
    """The number of zeros rises with lambda, at the same steps."""
    weight = torch.randn(64, 18, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    moments = torch.eye(18, dtype=torch.float64)[None]
    ones = torch.ones(64, dtype=torch.float64)
    zeros = [int((gptq.quantize_rows(weight, moments, ones, 0.7 * ones, lmbda) == 0).sum()) for lmbda in (0.0, 0.02, 0.1)]
    assert zeros == sorted(zeros)
    assert zeros[0] < zeros[-1]


def test_output_sensitivity_is_the_curvature_of_the_divergence():
    """For a linear classifier the sensitivity of a logit is E[p (1 - p)], known in closed form."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 4))
    inputs = torch.randn(4000, 6)
    found, costs = fisher.fisher_information(model, {"0": model[0]}, inputs.split(50))
    p = torch.softmax(model(inputs).detach(), 1)
    expected = (p * (1.0 - p)).mean(0).double()
    assert torch.allclose(found["0"], expected, rtol=0.15)
    assert costs["0.weight"] == pytest.approx(float(((p * (1 - p))[:, :, None] * inputs[:, None, :] ** 2).mean()), rel=0.15)


def test_synthetic_images_have_mean_0_and_variance_1():
    """Mean and variance are those over all images; an equal seed gives equal images."""
    images = synthetic_images.synthesize_images(4, (3, 16, 16), seed=0)
    assert torch.equal(images, synthetic_images.synthesize_images(4, (3, 16, 16), seed=0))
    assert math.isclose(float(images.mean()), 0.0, abs_tol=1e-5)
    assert np.isclose(float(images.std()), 1.0)


@pytest.mark.parametrize("orders", [("ab", "ba"), ("ab", "a"), ("a", "ab")])
def test_a_network_that_changes_its_order_is_refused(orders):
    """If two passes run different layers, or one runs fewer, the result is an error and not a deadlock."""

    class Reordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            for name in self.order:
                x = getattr(self, name)(x)
            return x

    dense, other = Reordered(), Reordered()
    dense.order, other.order = orders
    with pytest.raises(CalibrationError, match="in a different order"):
        paired_forward.run_paired(dense, other, batch_norm_pairs.find_layers(dense), torch.randn(2, 4), lambda *_: None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give either inputs"),
        ({"inputs": torch.randn(2, 3, 8, 8), "shape": (3, 8, 8)}, "give either inputs"),
        ({"inputs": torch.zeros(0, 3, 8, 8)}, "at least one sample"),
        ({"inputs": torch.randn(2, 5, 8, 8)}, "does not run"),
        ({"shape": (16,)}, "only images can be generated"),
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


@pytest.mark.slow
def test_calibration_scales_no_rows_unasked(monkeypatch):
    """A token embedding has one step in a calibrated file, and scales of its rows if they are requested."""

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs = nn.Linear(24, 12)
            self.embedding = nn.Embedding(1000, 12)
            self.head = nn.Linear(12, 10)

        def forward(self, x):
            return self.head(torch.relu(self.inputs(x)) + self.embedding.weight[:10].mean(0))

    torch.manual_seed(4)
    model = Embedded()
    model.embedding.weight.data *= torch.logspace(-1, 1, 1000).unsqueeze(1)
    calibration = calibrate(model, torch.randn(64, 24))
    monkeypatch.setattr(
        "opq.calibration.calibrate.output_errors", lambda *_: [0.0, 1.0]
    )  # the calibrated file is the better one
    rows = {}
    for scales in ("auto", "rows"):
        with opq.OpqFile(calibration.compress(ratio=5, scales=scales).data) as file:
            rows[scales] = hasattr(file["embedding.weight"].codebook, "rows")
    assert rows == {"auto": False, "rows": True}
