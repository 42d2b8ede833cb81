"""Laws of calibrated compression, on small random networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import opq
import opq.torch
from opq.calibration import batch_norm_pairs
from opq.calibration import fisher
from opq.calibration import gptq
from opq.calibration import paired_forward
from opq.calibration import synthetic_images
from opq.calibration.calibrate import calibrate
from opq.errors import CalibrationError, TargetError


class Small(nn.Module):
    """A convolution, a depthwise one and a linear layer; the first two with batch-norms, one more convolution read twice."""

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
        x = torch.relu(self.shared_norm(y)) + 0.5 * y  # not free to scale
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Small()
    for norm in batch_norm_pairs.find_batch_norms(model).values():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    return synthetic_images.settle(model, torch.randn(64, 3, 8, 8)).eval()


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
    """A layer whose output is used beside its batch-norm belongs to no pair; the others are found, and nothing is changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert batch_norm_pairs.find_pairs(network, inputs[:2]) == {"conv": "norm", "depthwise": "depthwise_norm"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_calibrated_file_meets_its_target(network, inputs):
    """The file takes at most the asked bytes and, even of a few thousand bytes, at least 99.5% of them."""
    dense = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    for ratio in (3.0, 4.0):
        made = calibrate(network, inputs).compress(ratio=ratio)
        assert 0.995 * dense / ratio <= made.file_bytes <= dense / ratio


def test_calibrated_outputs_are_closer_at_the_same_bytes(network, inputs, tmp_path):
    """At equal bytes the calibrated network's outputs are closer to the dense ones than those of weights rounded alone."""
    made = calibrate(network, inputs).compress(ratio=4)
    plain = opq.compress(network, size=made.file_bytes)
    fresh = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    calibrated = divergence(network, loaded(made, tmp_path), fresh)
    assert calibrated < 0.5 * divergence(network, loaded(plain, tmp_path), fresh)


def test_drawn_images_serve_without_data(network, tmp_path):
    """From drawn images alone the outputs on other inputs are closer than those of weights rounded alone, at equal bytes."""
    made = calibrate(network, shape=(3, 8, 8)).compress(ratio=4)
    plain = opq.compress(network, size=made.file_bytes)
    fresh = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert divergence(network, loaded(made, tmp_path), fresh) < divergence(network, loaded(plain, tmp_path), fresh)


def test_calibration_leaves_the_network_alone_and_repeats(network, inputs):
    """The model given is unchanged, and the same inputs give the same bytes."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = (calibrate(network, inputs[:32]).compress(size=4000).data for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_the_user_fixes_stays_fixed(network, inputs):
    """An override's step is the file's, an excluded weight is stored as it is, and a higher sensitivity takes more bits."""
    calibration = calibrate(network, inputs[:32])
    made = calibration.compress(size=9000, overrides={"head.weight": {"step": 0.125}}, exclude=["conv.weight"])
    assert made.plan.layers["head.weight"].step == 0.125
    assert "conv.weight" not in made.plan.layers
    plain, favoured = (
        calibration.rounded(1e-7, inputs[:32], {"ratio": 4.0, "sensitivity": wish})[1].layers["shared.weight"].sparsity
        for wish in ({}, {"shared.weight": 50.0 * calibration.sensitivity["shared.weight"]})
    )
    assert favoured < plain


def test_a_weight_that_two_layers_share_is_rounded_alone():
    """Tied weights have one grid: no layer of theirs is rounded against its outputs."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[2].weight = model[0].weight
    assert set(batch_norm_pairs.find_layers(model)) == {"4"}


def test_fine_steps_leave_the_function_as_it_is(network, inputs):
    """As the price of a bit falls, the rounded network becomes the dense one but for the precision of its batch-norms."""
    calibration = calibrate(network, inputs)
    state, _ = calibration.rounded(1e-9, inputs, {"ratio": 2.0})
    model = Small()
    model.load_state_dict(state)
    with torch.no_grad():
        spread = float(network(inputs).var())
    assert divergence(network, model.eval(), inputs) < 1e-4 * spread


def test_coarse_steps_leave_means_and_slopes_as_they_are(network, inputs):
    """However high the price of a bit, behind each paired batch-norm a channel has its dense mean, and the dense output is, by
    least squares, once the new one: gain and shift make up for what rounding took.
    """
    calibration = calibrate(network, inputs)
    state, _ = calibration.rounded(3e-7, inputs, {"ratio": 4.0})
    model = Small()
    model.load_state_dict(state)

    def outputs(network, name):
        found = []
        handle = network.get_submodule(name).register_forward_hook(lambda _, __, output: found.append(output.clone()))
        with torch.no_grad():
            network.eval()(inputs)
        handle.remove()
        return found[0].double().transpose(0, 1).flatten(1)

    for name in calibration.norms.values():
        dense, own = outputs(network, name), outputs(model, name)
        assert float((dense - own).square().mean()) > 0.01 * float(dense.var())  # the steps are coarse
        torch.testing.assert_close(own.mean(1), dense.mean(1), rtol=0.0, atol=0.05)
        centred = own - own.mean(1, keepdim=True)
        slopes = (centred * dense).sum(1) / centred.square().sum(1)
        torch.testing.assert_close(slopes, torch.ones_like(slopes), rtol=0.0, atol=0.05)


def test_compensation_beats_rounding_to_nearest():
    """With correlated inputs, codes chosen column by column make less output error than rounding to nearest, at equal steps."""
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


def test_a_higher_price_means_fewer_bits():
    """The entropy of the codes falls as a bit's price rises, at the same steps."""
    weight = torch.randn(64, 18, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    moments = torch.eye(18, dtype=torch.float64)[None]
    ones = torch.ones(64, dtype=torch.float64)
    zeros = [int((gptq.quantize_rows(weight, moments, ones, 0.7 * ones, lmbda) == 0).sum()) for lmbda in (0.0, 0.02, 0.1)]
    assert zeros == sorted(zeros)
    assert zeros[0] < zeros[-1]


def test_importance_is_the_curvature_of_the_divergence():
    """For a linear classifier the importance of a logit is E[p (1 - p)], which is known in closed form."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 4))
    inputs = torch.randn(4000, 6)
    found, costs = fisher.fisher_information(model, {"0": model[0]}, inputs.split(50))
    p = torch.softmax(model(inputs).detach(), 1)
    expected = (p * (1.0 - p)).mean(0).double()
    assert torch.allclose(found["0"], expected, rtol=0.15)
    assert costs["0.weight"] == pytest.approx(float(((p * (1 - p))[:, :, None] * inputs[:, None, :] ** 2).mean()), rel=0.15)


def test_drawn_images_are_of_mean_0_and_variance_1():
    """Over all, and equal for an equal seed."""
    drawn = synthetic_images.synthesize_images(4, (3, 16, 16), seed=0)
    assert torch.equal(drawn, synthetic_images.synthesize_images(4, (3, 16, 16), seed=0))
    assert math.isclose(float(drawn.mean()), 0.0, abs_tol=1e-5)
    assert np.isclose(float(drawn.std()), 1.0)


@pytest.mark.parametrize("ways", [("ab", "ba"), ("ab", "a"), ("a", "ab")])
def test_a_network_that_changes_its_way_is_refused(ways):
    """A network whose two passes reach different layers, or one of them fewer, ends in an error, not in a wait."""

    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            for name in self.way:
                x = getattr(self, name)(x)
            return x

    dense, other = Fickle(), Fickle()
    dense.way, other.way = ways
    with pytest.raises(CalibrationError, match="in a different order"):
        paired_forward.walk(dense, other, batch_norm_pairs.find_layers(dense), torch.randn(2, 4), lambda *_: None)


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
def test_unsuitable_inputs_end_in_one_line(network, arguments, words):
    """Inputs that do not suit the network, or none, are told in one sentence."""
    with pytest.raises(CalibrationError, match=words):
        calibrate(network, **arguments)


def test_the_paper_s_target_is_refused(network, inputs):
    """Calibrated compression takes bytes, not sparsity and bits."""
    with pytest.raises(TargetError, match="a ratio or a size"):
        calibrate(network, inputs[:8]).compress(sparsity=0.5, bits=4)


def test_canonical_batch_norms_know_the_modules_eps(inputs):
    """In canonical form a calibrated file computes what it does in its own, whatever a batch-norm adds to its variances."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.BatchNorm2d(3, eps=0.5), nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    nn.init.uniform_(model[0].weight, 0.5, 1.5)
    model[0].running_var.uniform_(0.05, 0.2)
    found = {}
    for form in ("keep", "canonical"):
        other = nn.Sequential(nn.BatchNorm2d(3, eps=0.5), nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
        data = calibrate(model.eval(), inputs[:32]).compress(ratio=4, batch_norm=form).data
        opq.torch.load_model(other, data)
        found[form] = divergence(model, other.eval(), inputs)
    assert found["canonical"] < 2.0 * found["keep"] + 1e-6
