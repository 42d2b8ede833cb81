"""The formulas of docs/method.md, section 5, each computed a second time: by least squares, inverses and determinants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import nn

from opq.calibration import batch_norm_pairs, fisher, gptq, synthetic_images
from opq.calibration.layer_reconstruction import ReconstructedLayer, reconstruct_layer

SAMPLES, INPUTS, OUTPUTS = 300, 6, 8
FINE, COARSE = 1e-12, 0.05
seeds = st.integers(0, 999)


def activations(seed):
    """Inputs of a layer in the dense network and in the quantized one: correlated, not centred, and not equal."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(SAMPLES, INPUTS)) @ rng.normal(size=(INPUTS, INPUTS)) + rng.normal(size=INPUTS)
    own = 0.8 * dense + 0.3 * rng.normal(size=(SAMPLES, INPUTS)) + 0.2
    return dense.astype(np.float32), own.astype(np.float32)


def linear(seed, bias):
    layer = nn.Linear(INPUTS, OUTPUTS, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.random.default_rng(seed).normal(size=(OUTPUTS, INPUTS))))
    return layer


def ridge_regression(weight, dense, own, *, centred, share=0.01):
    """Minimize E|W y - W' x|^2 + ridge |W - W'|^2 by least squares; the ridge is 1% of the mean square of an input."""
    y, x = dense.astype(np.float64), own.astype(np.float64)
    if centred:
        y, x = y - y.mean(0), x - x.mean(0)
    ridge = math.sqrt(share * float(np.square(x).mean()))
    inputs = np.concatenate([x / math.sqrt(len(x)), ridge * np.eye(x.shape[1])])
    outputs = np.concatenate([y @ weight.T / math.sqrt(len(x)), ridge * weight.T])
    return np.linalg.lstsq(inputs, outputs, rcond=None)[0].T


@given(seeds, st.booleans())
@settings(max_examples=20)
def test_the_target_is_a_ridge_regression(seed, bias):
    """At fine steps the values are those of a ridge regression from the layer's own inputs to the dense outputs; the inputs are
    centred if the layer has a bias.
    """
    (dense, own), layer = activations(seed), linear(seed, bias)
    ones = torch.ones(OUTPUTS, dtype=torch.float64)
    found = reconstruct_layer(layer, False, torch.from_numpy(dense), torch.from_numpy(own), ones, FINE)
    wanted = ridge_regression(layer.weight.detach().numpy().astype(np.float64), dense, own, centred=bias)
    np.testing.assert_allclose(found.step * found.codes.numpy(), wanted, rtol=1e-3, atol=1e-4)
    assert np.abs(wanted - layer.weight.detach().numpy()).max() > 0.05  # the regression changes weights
    assert found.scales is None


@given(seeds)
@settings(max_examples=20)
def test_gain_and_shift_are_the_line_through_the_outputs(seed):
    """Scale and shift of a channel are the least-squares line from its new output to the dense one."""
    (dense, own), layer = activations(seed), linear(seed, False)
    ones = torch.ones(OUTPUTS, dtype=torch.float64)
    found = reconstruct_layer(layer, True, torch.from_numpy(dense), torch.from_numpy(own), ones, COARSE)
    assert math.log2(found.step).is_integer()
    assert 2.0**-0.5 <= float(found.scales.median()) <= 2.0**0.5
    wanted = dense.astype(np.float64) @ layer.weight.detach().numpy().T
    given_ = own.astype(np.float64) @ (found.step * found.codes.numpy()).T
    for channel in np.flatnonzero(np.ptp(given_, axis=0)):  # a channel without nonzero codes has no slope
        slope, start = np.polyfit(given_[:, channel], wanted[:, channel], 1)
        assert float(found.scales[channel]) == pytest.approx(slope, rel=1e-3)
        assert float(found.shift[channel]) == pytest.approx(start, rel=1e-3, abs=1e-3)


@given(seeds)
@settings(max_examples=20)
def test_a_bias_corrects_the_mean(seed):
    """Without a batch norm, the shift is the mean of the dense outputs minus that of the new outputs."""
    (dense, own), layer = activations(seed), linear(seed, True)
    ones = torch.ones(OUTPUTS, dtype=torch.float64)
    found = reconstruct_layer(layer, False, torch.from_numpy(dense), torch.from_numpy(own), ones, COARSE)
    values = found.step * found.codes.numpy()
    wanted = layer.weight.detach().numpy() @ dense.mean(0) - values @ own.mean(0)
    np.testing.assert_allclose(found.shift.numpy(), wanted, rtol=1e-3, atol=1e-3)
    before = layer.bias.detach().clone()
    with torch.no_grad():
        found.apply(layer, None)
    np.testing.assert_allclose((layer.bias - before).detach().numpy(), wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(layer.weight.detach().numpy(), values, rtol=1e-6)


@given(seeds, st.booleans())
@settings(max_examples=20)
def test_a_batch_norm_absorbs_scale_and_shift(seed, bias):
    """After `apply`, layer and batch norm compute what the batch norm computed of scale * output + shift + old bias. The batch
    norm is folded, and its weight and bias are rounded to bfloat16.
    """
    rng = np.random.default_rng(seed)
    layer, norm = linear(seed, bias), nn.BatchNorm1d(OUTPUTS, eps=1e-3).eval()
    with torch.no_grad():
        for part, low in ((norm.weight, 0.5), (norm.bias, -1.0), (norm.running_mean, -1.0), (norm.running_var, 0.2)):
            part.copy_(torch.tensor(rng.uniform(low, 2.0, OUTPUTS)))
    codes = torch.tensor(rng.integers(-4, 5, (OUTPUTS, INPUTS)), dtype=torch.int32)
    scales, shift = (torch.tensor(rng.uniform(0.5, 2.0, OUTPUTS)) for _ in range(2))
    x = torch.tensor(rng.normal(size=(50, INPUTS))).float()
    with torch.no_grad():
        old_bias = layer.bias.clone() if bias else torch.zeros(OUTPUTS)
        output = x @ (0.25 * codes.float()).T
        wanted = norm((scales * output + shift + old_bias).float())
        reconstructed = ReconstructedLayer(0.25, codes, "float32", scales, shift)
        reconstructed.apply(layer, norm)
        found = norm(layer(x))
    assert not norm.running_mean.any()
    assert (norm.running_var == 1.0).all()
    for part in (norm.weight, norm.bias):
        assert torch.equal(part.detach(), part.detach().bfloat16().float())
    scale = (norm.weight.abs() * output.abs() + norm.bias.abs()).detach()
    assert ((found - wanted).abs() <= 2.0**-8 * scale + 1e-5).all()


def unfolded(batch, kernel, group, groups):
    """Columns (positions, inner * kernel^2) of images padded with zeros by half a kernel, one group of channels, by loops."""
    inner = batch.shape[1] // groups
    part = batch[:, group * inner : (group + 1) * inner]
    half = kernel // 2
    padded = np.pad(part, ((0, 0), (0, 0), (half, half), (half, half)))
    height, width = batch.shape[2:]
    return np.stack(
        [
            padded[image, :, row : row + kernel, column : column + kernel].reshape(-1)
            for image in range(len(batch))
            for row in range(height)
            for column in range(width)
        ]
    ).astype(np.float64)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_step_of_a_convolution(groups):
    """Without a batch norm it is sqrt(6 lambda / (ln 2 G h)), G and h means over channels, h = det(M)^(1/n), and M = E[x x^T]
    summed over the positions of an image, with 1% of its mean diagonal added.
    """
    rng = np.random.default_rng(groups)
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=groups, bias=False)
    dense = rng.normal(size=(20, 4, 5, 5)).astype(np.float32)
    own = dense + 0.1 * rng.normal(size=dense.shape).astype(np.float32)
    costs, lmbda = rng.uniform(0.5, 2.0, 6), 0.03
    found = reconstruct_layer(layer, False, torch.from_numpy(dense), torch.from_numpy(own), torch.tensor(costs), lmbda)
    powers = []
    for group in range(groups):
        columns = unfolded(own, 3, group, groups)
        moments = columns.T @ columns / len(own)  # summed over positions, averaged over images
        moments += 0.01 * np.trace(moments) / len(moments) * np.eye(len(moments))
        powers.append(math.exp(np.mean(np.log(np.linalg.eigvalsh(moments)))))
    wanted = math.sqrt(6.0 * lmbda / (math.log(2.0) * costs.mean() * np.mean(powers)))
    assert found.step == pytest.approx(wanted, rel=1e-4)


@given(seeds, st.booleans())
@settings(max_examples=20)
def test_rows_with_scales_are_reconstructed_alike(seed, bias):
    """A row times 2^m has, with the scale 8 m and the sensitivity over 4^m, the same codes, and the same step without scales.
    A layer with a batch norm, which absorbs the scales of rows, has none.
    """
    (dense, own), layer, moved = activations(seed), linear(seed, bias), linear(seed, bias)
    octaves = np.random.default_rng(seed).integers(-4, 5, OUTPUTS)
    factors = torch.from_numpy(np.exp2(octaves))
    with torch.no_grad():
        moved.weight.mul_(factors[:, None].float())
    inputs, costs = (torch.from_numpy(dense), torch.from_numpy(own)), torch.rand(OUTPUTS).double() + 0.5
    plain = reconstruct_layer(layer, False, *inputs, costs, COARSE)
    rows = tuple((8 * octaves).tolist())
    scaled = reconstruct_layer(moved, False, *inputs, costs / factors**2, COARSE, rows)
    assert torch.equal(scaled.codes, plain.codes)
    assert scaled.step == pytest.approx(plain.step, rel=1e-6)
    if any(rows):
        assert scaled.tensor().codebook.rows.tolist() == list(rows)
    with torch.no_grad():
        scaled.apply(moved, None)
    assert np.array_equal(moved.weight.detach().numpy(), scaled.tensor().values())
    assert reconstruct_layer(moved, True, *inputs, costs, COARSE, rows).rows is None


def test_the_step_with_scales():
    """With scales it is sqrt(6 lambda / (ln 2 G h)) with G the mean of G_j f_j^2; row j has its factor f_j times it."""
    (dense, own), layer = activations(1), linear(1, False)
    costs, rows = torch.rand(OUTPUTS, generator=torch.Generator().manual_seed(0)).double() + 0.5, (0, 3, -5, 8, 1, 20, -30, 2)
    found = reconstruct_layer(layer, False, torch.from_numpy(dense), torch.from_numpy(own), costs, COARSE, rows)
    plain = reconstruct_layer(layer, False, torch.from_numpy(dense), torch.from_numpy(own), costs, COARSE)
    factors = 2.0 ** (np.array(rows) / 8.0)
    wanted = plain.step * math.sqrt(float(costs.mean()) / float((costs.numpy() * factors**2).mean()))
    assert found.step == pytest.approx(wanted, rel=1e-5)
    target = ridge_regression(layer.weight.detach().numpy().astype(np.float64), dense, own, centred=False)
    steps = found.step * factors[:, None]
    assert (np.abs(found.tensor().values() - target) / steps).mean() < 3.0


@given(st.floats(1e-6, 1e3), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_step_minimizes_error_and_bits(lmbda, cost, power):
    """No other step has a lower G h step^2 / 12 - lambda log2(step): the error at high rate plus lambda times the bits."""
    found = float(gptq.steps_at(lmbda, torch.tensor([cost]), torch.tensor([power]))[0])
    lagrangian = lambda log_step: cost * power * math.exp(2.0 * log_step) / 12.0 - lmbda * log_step / math.log(2.0)  # noqa: E731
    best = minimize_scalar(lagrangian, (math.log(found) - 1.0, math.log(found) + 0.7), tol=1e-12)
    assert math.log(found) == pytest.approx(best.x, abs=1e-4)


def moments_of(rng, size, groups=1):
    """Second moments (groups, size, size) of correlated inputs of unequal power."""
    mixing = rng.normal(size=(groups, size, size)) * rng.uniform(0.2, 2.0, size)[:, None]
    return mixing @ mixing.transpose(0, 2, 1) / size


@given(seeds, st.integers(1, 12))
def test_damping_is_a_hundredth_of_the_mean_diagonal(seed, size):
    """A hundredth of the mean diagonal is added to the diagonal; the other entries stay."""
    moments = moments_of(np.random.default_rng(seed), size)
    added = gptq.damped(torch.tensor(moments)).numpy() - moments
    np.testing.assert_allclose(added[0], 0.01 * np.trace(moments[0]) / size * np.eye(size), rtol=1e-6, atol=1e-9)


@given(seeds, st.integers(1, 12))
def test_the_compensated_error_is_a_mean_of_conditional_variances(seed, size):
    """det(M)^(1/n) is the geometric mean of the variance of each input given the inputs after it: what an error at this input
    costs if later columns compensate it.
    """
    moments = moments_of(np.random.default_rng(seed), size, groups=2)
    for group, found in zip(moments, gptq.compensated_error(torch.tensor(moments)), strict=True):
        damped = group + 0.01 * np.trace(group) / size * np.eye(size)
        left = []
        for column in range(size):
            later = damped[column + 1 :, column + 1 :]
            cross = damped[column, column + 1 :]
            explained = cross @ np.linalg.solve(later, cross) if len(later) else 0.0
            left.append(damped[column, column] - explained)
        assert float(found) == pytest.approx(math.exp(np.mean(np.log(left))), rel=1e-6)


def bits_of(codes):
    """Bits per code: -log2 of the share of each magnitude, with 1/20 added to each count, plus one bit for a sign."""
    counts = np.bincount(np.minimum(np.abs(codes), 40).astype(int).ravel(), minlength=41) + 0.05
    return -np.log2(counts / counts.sum()) + (np.arange(41) > 0)


def round_by_hand(weight, moments, cost, steps, lmbda):
    """Codes of the rows of one group, column by column, with the inverse of the moments of the remaining columns."""
    size = weight.shape[1]
    damped = moments + 0.01 * np.trace(moments) / size * np.eye(size)
    order = np.argsort(-np.diag(damped), kind="stable")
    inverses = [np.linalg.inv(damped[np.ix_(order[at:], order[at:])]) for at in range(size)]
    bits = bits_of(np.rint(weight / steps[:, None]))
    for _ in range(2):
        left, codes = weight[:, order] / steps[:, None], np.zeros(weight.shape)
        for at, inverse in enumerate(inverses):
            wanted = left[:, at]
            nearest = np.rint(np.abs(wanted))
            options = np.stack([nearest, np.maximum(nearest - 1.0, 0.0), np.zeros_like(nearest)])
            squares = (np.abs(wanted) - options) ** 2
            spent = cost * steps**2 * squares / inverse[0, 0] + lmbda * bits[np.minimum(options, 40).astype(int)]
            best = options[spent.argmin(0), np.arange(len(wanted))] * np.sign(wanted)
            codes[:, order[at]] = best
            left[:, at:] -= ((wanted - best)[:, None] / inverse[0, 0]) * inverse[0]
        bits = bits_of(codes)
    return codes


@pytest.mark.parametrize("lmbda", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("size", [9, 80])
def test_codes_are_chosen_column_by_column(lmbda, size):
    """A code minimizes error plus lambda times bits, and later columns compensate its error by [M^-1]_c. / [M^-1]_cc.

    In a few rows of a hundred, float32 rounds one code to the other side, and later codes follow.
    """
    rng = np.random.default_rng(size)
    weight, cost = rng.normal(size=(40, size)), rng.uniform(0.5, 2.0, 40)
    steps, moments = rng.uniform(0.3, 0.8, 40), moments_of(rng, size)
    arguments = (torch.tensor(part) for part in (weight, moments, cost, steps))
    found = gptq.quantize_rows(*arguments, lmbda).numpy()
    wanted = round_by_hand(weight, moments[0], cost, steps, lmbda)
    rows = (found == wanted).all(1)
    assert rows.mean() >= 0.9


@pytest.mark.parametrize("shape", [(1,), (3, 4)])
def test_other_outputs_count_by_their_squared_error(shape):
    """If outputs are not logits of classes, the sensitivity of every output is 1."""
    model = nn.Sequential(nn.Linear(6, shape[-1]))
    inputs = torch.randn(2000, *shape[:-1], 6, generator=torch.Generator().manual_seed(0))
    found, _ = fisher.fisher_information(model, {"0": model[0]}, inputs.split(50))
    assert found["0"].tolist() == pytest.approx([1.0] * shape[-1], rel=0.15)


def test_the_output_sensitivity_of_a_convolution_is_the_mean_over_positions():
    """An output that sums a channel over positions has one gradient for all: the sensitivity is the square of that gradient."""

    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x):
            return (self.conv(x) * torch.tensor([1.0, 2.0, 0.0])[:, None, None]).sum((1, 2, 3))[:, None]

    model = Summed()
    inputs = torch.randn(2000, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    found, _ = fisher.fisher_information(model, {"conv": model.conv}, inputs.split(50))
    assert found["conv"][:2].tolist() == pytest.approx([1.0, 4.0], rel=0.15)
    assert float(found["conv"][2]) == pytest.approx(1e-3 * 5.0 / 3.0, rel=0.15)  # a thousandth of the mean at least


def test_recomputed_statistics_are_those_of_the_inputs():
    """After each batch norm, channels have its bias as mean and the magnitude of its weight as standard deviation."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.ReLU()
    )
    for norm in batch_norm_pairs.find_batch_norms(model).values():
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.constant_(norm.running_mean, 7.0)
    momenta = [norm.momentum for norm in batch_norm_pairs.find_batch_norms(model).values()]
    inputs = 3.0 * torch.randn(64, 3, 10, 10) + 1.0
    recomputed = synthetic_images.recompute_statistics(model.eval(), inputs)
    assert recomputed is model
    assert [norm.momentum for norm in batch_norm_pairs.find_batch_norms(model).values()] == momenta
    assert not any(module.training for module in batch_norm_pairs.find_batch_norms(model).values())
    given_ = {}
    for name, norm in batch_norm_pairs.find_batch_norms(model).items():
        norm.register_forward_hook(lambda _, __, output, name=name: given_.update({name: output.clone()}))
    with torch.no_grad():
        model(inputs)
    for name, norm in batch_norm_pairs.find_batch_norms(model).items():
        values = given_[name].transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), norm.bias.detach(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(values.std(1), norm.weight.detach().abs(), rtol=1e-3, atol=1e-3)
