"""Laws of the formulas behind calibration: curvature, steps, compensation, and batch norms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples
from torch import nn

from opq.calibration.batch_norm_statistics import correct, input_statistics
from opq.calibration.compensation import DAMPING, Factor, round_columns
from opq.calibration.curvature import Curvature, matrix_of, measure_curvature, total
from opq.calibration.curvature_steps import RELATIVE_SHARE, ROW_SHARE, Pattern, balanced_levels, pattern_of
from opq.calibration.outputs import magnitudes_of, random_directions

seeds = st.integers(0, 2**16)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(size, seed=0):
    mixing = normal(size, size, seed=seed).double()
    return mixing @ mixing.T


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv1d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 5)),
        nn.Sequential(nn.ConvTranspose1d(3, 2, 3, stride=2), nn.Tanh(), nn.Flatten()),
    ],
)
def test_curvature_is_that_of_the_squared_error(model):
    """The sums over rows and over columns of the curvature are those of the squared derivatives of all outputs, over the mean
    square of the first batch's.
    """
    torch.manual_seed(0)
    inputs = normal(8, 3, 7)
    found = measure_curvature(model.eval(), [[((half,), {}) for half in inputs.split(4)]] * 600)
    scale = float(model(inputs[:4]).detach().square().mean())
    for name, curvature in found.items():
        weight = model.get_parameter(name).detach()

        def run(value, name=name):
            return torch.func.functional_call(model, {name: value}, (inputs,)).flatten()

        squares = torch.func.jacrev(run)(weight).detach().double().square().sum(0) / scale
        wanted = matrix_of(squares, curvature.transposed)
        assert torch.allclose(curvature.rows / 600, wanted.sum(1), rtol=0.2)
        assert torch.allclose(torch.cat([block.diagonal() for block in curvature.moments]) / 600, wanted.sum(0), rtol=0.2)
        assert curvature.mean / 600 == pytest.approx(float(wanted.mean()), rel=0.1)
    assert found["0.weight"].transposed == isinstance(model[0], nn.ConvTranspose1d)


def test_measuring_changes_nothing():
    """Values, gradients and flags of the network are the same afterwards; a parameter that the outputs ignore is absent."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model.spare = nn.Linear(4, 4)
    model.forward = lambda x: model[1](model[0](x))
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert set(measure_curvature(model, [[((normal(5, 4),), {})]])) == {"0.weight", "1.weight"}
    assert not model[0].weight.requires_grad
    assert model[1].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_equal_weights_have_the_sum_of_their_curvatures():
    """The total of a weight's copies is the sum; it is None if none of them was measured."""
    one, two = Curvature(torch.ones(2), (torch.eye(3),)), Curvature(torch.ones(2), (2.0 * torch.eye(3),))
    both = total({"a": one, "b": two}, ["a", "b", "c"])
    assert torch.equal(both.rows, torch.full((2,), 2.0))
    assert torch.equal(both.moments[0], 3.0 * torch.eye(3))
    assert total({"a": one}, ["c"]) is None


def test_directions_of_distributions_have_the_covariance_of_the_fisher_information():
    """It is diag(p) - p p^T for each distribution."""
    logits = normal(1, 1, 5).expand(40000, 1, 5)
    (found,) = random_directions([logits], [1.0], torch.Generator().manual_seed(0), distributions=True)
    p = logits[0, 0].softmax(0)
    covariance = found[:, 0].T @ found[:, 0] / len(found)
    assert torch.allclose(covariance, p.diag() - p[:, None] * p, atol=0.01)


def test_directions_of_other_outputs_have_one_over_their_power():
    """Outputs of any magnitude count alike."""
    outputs = [1000.0 * normal(4000, 3), 0.001 * normal(4000, 2)]
    directions = random_directions(outputs, magnitudes_of(outputs), torch.Generator(), distributions=False)
    for output, found in zip(outputs, directions, strict=True):
        assert float((found.square().mean() * output.square().mean()).sqrt()) == pytest.approx(1.0, rel=0.05)


@given(st.integers(1, 9), seeds)
@examples(30)
def test_the_factor_is_that_of_the_inverse(size, seed):
    """U^T U is the inverse of the curvature over its mean diagonal, with DAMPING on the diagonal; its pivots are U_jj."""
    moments = correlated(size, seed)
    factor = Factor.of(moments)
    upper = factor.upper.double() * factor.pivots[factor.order][:, None]
    damped = moments / moments.diagonal().mean() + DAMPING * torch.eye(size, dtype=torch.float64)
    wanted = torch.linalg.inv(damped)[factor.order][:, factor.order]
    assert torch.allclose(upper.T @ upper, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert bool((moments.diagonal()[factor.order].diff() <= 0.0).all())


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e-30, 1.0, 1e200])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_every_curvature_has_a_factor(scale, rank):
    """Moments of few inputs, or of none, in any unit, give finite factors; so do slightly indefinite ones."""
    vectors = normal(rank, 12).double()
    moments = scale * (vectors.T @ vectors)
    moments[0, 1] += 1e-9 * scale
    factor = Factor.of(moments)
    assert bool(factor.upper.isfinite().all())
    assert bool((factor.pivots > 0.0).all())


@given(st.integers(2, 100), seeds, st.floats(0.05, 2.0))
@examples(20)
def test_compensation_never_loses(size, seed, step):
    """At equal steps the codes cost at most slightly more than rounding to nearest, and with correlated columns far less."""
    weight, moments = normal(16, size, seed=seed + 1), correlated(size, seed)
    row_steps, column_steps = torch.full((16,), step), torch.exp2(0.5 * normal(size, seed=seed + 2))
    codes = round_columns(weight, row_steps, column_steps, Factor.of(moments))
    damped = moments / moments.diagonal().mean() + DAMPING * torch.eye(size, dtype=torch.float64)

    def cost(found):
        left = (weight - step * column_steps * found).double()
        return float((left @ damped * left).sum())

    assert cost(codes) < (1.05 if size < 20 else 0.8) * cost(torch.round(weight / (step * column_steps)))
    assert codes.dtype == torch.int32


@given(seeds, st.floats(-0.9, 0.9), st.floats(0.1, 2.0), st.floats(0.1, 2.0))
@examples(30)
def test_the_last_column_makes_up_for_the_first(seed, correlation, first, second):
    """Of two columns, the second is rounded at the place that minimises the error, given what the first has become."""
    weight = normal(20, 2, seed=seed)
    moments = torch.tensor([[2.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    codes = round_columns(weight, torch.ones(20), torch.tensor([first, second]), Factor.of(moments))
    assert torch.equal(codes[:, 0], torch.round(weight[:, 0] / first).int())
    damped = moments / 1.5 + DAMPING * torch.eye(2, dtype=torch.float64)
    best = weight[:, 1] + damped[0, 1] / damped[1, 1] * (weight[:, 0] - first * codes[:, 0])
    assert float((best / second - codes[:, 1]).abs().max()) < 0.5 + 1e-3


@given(seeds, st.integers(-3, 3), st.integers(-3, 3))
@examples(20)
def test_codes_do_not_depend_on_units(seed, rows, columns):
    """Weights and steps times powers of two, of rows or of columns with the curvature over them, give the same codes."""
    weight, moments = normal(6, 70, seed=seed), correlated(70, seed + 1)
    row_steps, column_steps = 0.3 + normal(6, seed=seed).abs(), 0.3 + normal(70, seed=seed).abs()
    plain = round_columns(weight, row_steps, column_steps, Factor.of(moments))
    unit = 2.0 ** (rows + columns)
    other = round_columns(weight * unit, row_steps * 2.0**rows, column_steps * 2.0**columns, Factor.of(moments * 2.0**columns))
    assert torch.equal(plain, other)


@given(seeds)
@settings(max_examples=10)
def test_steps_follow_the_curvature(seed):
    """With independent columns, steps of columns are inverse to the root of their curvature, those of rows to ROW_SHARE of it,
    to a sixteenth of an octave; four times the curvature halves all steps.
    """
    rows, columns = torch.exp2(2.0 * normal(64, seed=seed).double()), torch.exp2(2.0 * normal(80, seed=seed + 1).double())
    curvature = Curvature(rows, (columns.diag() * rows.sum() / columns.sum(),))
    weight = normal(64, 80, seed=seed + 2)
    found = pattern_of(weight, curvature, [Factor.of(curvature.moments[0])], scaled=True)
    damped = columns / columns.mean() + DAMPING
    for scales, wanted in ((found.rows, ROW_SHARE * rows.log2()), (found.columns, damped.log2())):
        wanted = -0.5 * (wanted - wanted.mean())
        assert torch.allclose(torch.from_numpy(scales).double() / 8.0, wanted, atol=0.075)
    four = Curvature(4.0 * rows, (4.0 * curvature.moments[0],))
    finer = pattern_of(weight, four, [Factor.of(four.moments[0])], scaled=True)
    assert finer.level == pytest.approx(found.level - 1.0)
    plain = pattern_of(weight, curvature, [Factor.of(curvature.moments[0])], scaled=False)
    assert plain.rows is None
    assert plain.columns is None
    assert plain.level == pytest.approx(
        -0.5 * math.log2(float((rows + 1e-4 * rows.mean()).mean() * damped.mean() / 80)), abs=0.01
    )


def test_scales_that_cost_more_than_they_save_are_left_out():
    """Curvatures that differ by little have no scales in a small weight, and have them in a large one."""
    for count, scaled in ((4, False), (4000, True)):
        columns = torch.tensor([1.0, 2.0] * 8).double()
        curvature = Curvature(torch.ones(count).double(), (columns.diag() * count / columns.sum(),))
        found = pattern_of(normal(count, 16), curvature, [Factor.of(curvature.moments[0])], scaled=True)
        assert (found.columns is not None) == scaled
        assert found.rows is None


def test_tokens_that_were_not_seen_have_steps_of_their_own_magnitude():
    """Rows of an embedding without curvature are coarser than those with, and in proportion to the root of their magnitudes."""
    weight = normal(2000, 8) * torch.tensor([1.0, 4.0]).repeat(1000)[:, None]
    rows = torch.cat([torch.ones(1000), torch.zeros(1000)]).double()
    curvature = Curvature(rows, (torch.eye(8).double() * 125.0,))
    found = pattern_of(weight, curvature, [Factor.of(curvature.moments[0])], scaled=True, by_magnitude=True)
    scales = torch.from_numpy(found.rows).double() / 8.0
    assert float(scales[1000:].mean() - scales[:1000].mean()) == pytest.approx(0.25 * math.log2(2.05 / 0.05), abs=0.1)
    assert float(scales[1::2].mean() - scales[::2].mean()) == pytest.approx(1.0, abs=0.1)


@given(seeds)
@settings(max_examples=10)
def test_levels_are_drawn_towards_relative_errors(seed):
    """The differences of levels are those of curvature, with RELATIVE_SHARE of those of root mean square times root of size;
    their mean over all elements stays.
    """
    matrices = {
        name: normal(8 * size, 16, seed=seed + size) * 2.0 ** (3 * size) for name, size in (("a", 1), ("b", 2), ("c", 5))
    }
    patterns = {name: Pattern(float(level), None, None) for name, level in zip("abc", normal(3, seed=seed), strict=True)}
    found = balanced_levels(patterns, matrices)
    relative = {
        name: 0.5 * math.log2(float(matrix.double().square().mean()) * matrix.numel()) for name, matrix in matrices.items()
    }
    for one, two in ("ab", "bc"):
        wanted = (1.0 - RELATIVE_SHARE) * (patterns[one].level - patterns[two].level)
        wanted += RELATIVE_SHARE * (relative[one] - relative[two])
        assert found[one] - found[two] == pytest.approx(wanted)
    sizes = {name: matrix.numel() for name, matrix in matrices.items()}
    assert sum(sizes[name] * (found[name] - patterns[name].level) for name in sizes) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_batch_norms_make_up_for_scales_and_shifts(dims):
    """If every channel before a batch norm is scaled and shifted, the corrected statistics give the old outputs, also behind
    further batch norms; a batch norm that runs twice is left alone.
    """
    torch.manual_seed(dims)
    convolution, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 1]
    model = nn.Sequential(convolution(2, 6, 3), norm(6), nn.ReLU(), convolution(6, 4, 1), norm(4)).eval()
    for module in (model[1], model[4]):
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2.0)
    batch = ((normal(16, 2, *[6] * dims),), {})
    wanted, before = input_statistics(model, batch), model(*batch[0])
    with torch.no_grad():
        for module, factor in ((model[0], 0.7), (model[3], 1.4)):
            module.weight.mul_(factor)
            module.bias.mul_(factor).add_(0.3)
    found = correct(model, batch, wanted)
    assert set(found) == {"1", "4"}
    assert torch.allclose(found["1"][0], torch.full((6,), 0.7).double(), rtol=1e-4)
    assert torch.allclose(model(*batch[0]), before, atol=1e-3)
    twice = nn.Sequential(model[1], model[1])
    assert input_statistics(twice, ((normal(16, 6, *[6] * dims),), {})) == {}
