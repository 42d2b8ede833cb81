"""Two-stage mode: sparsity first, then bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from opq.config import LayerConfig
from opq.errors import TargetError
from opq.rate_distortion import laplace, two_stage
from opq.rate_distortion.layers import Layer, LayerStatistics


def layer(name, shape, channel_scales, zeros=0, **config):
    """A layer whose channels have the given Laplace scales."""
    scales = np.asarray(channel_scales, dtype=np.float64)
    statistics = LayerStatistics(shape, float(scales.mean()), scales, zeros, np.zeros(1), np.zeros(1), 1, np.zeros(0))
    return Layer(name, statistics, LayerConfig(**config))


ALIKE = st.just(1.0)


@st.composite
def networks(draw, sensitivities=ALIKE):
    """One to five layers of 1 to 4 channels and scales over three decades."""
    layers = []
    for number in range(draw(st.integers(1, 5))):
        channels = draw(st.integers(1, 4))
        base = draw(st.floats(-3.0, 0.0))
        scales = [10.0 ** (base + draw(st.floats(-0.5, 0.5))) for _ in range(channels)]
        shape = (channels, draw(st.integers(5, 5000)))
        layers.append(layer(f"layer{number}", shape, scales, sensitivity=draw(sensitivities)))
    return layers


sparsities = st.floats(0.0, 0.97)
widths = st.floats(1.5, 8.0)


@given(networks(), sparsities, widths)
def test_sparsity_is_met_exactly(layers, sparsity, bits):
    """The layers together keep the requested number of weights, rounded to an integer."""
    points = two_stage.allocate(layers, sparsity, bits)
    total = sum(layer.statistics.count for layer in layers)
    assert sum(point.num_kept for point in points) == total - round(sparsity * total)


@given(networks(st.floats(0.1, 10.0)), st.floats(0.05, 0.95), widths)
def test_thresholds_times_root_sensitivity_are_equal(layers, sparsity, bits):
    """Threshold * sqrt(sensitivity) is the same in every layer, and the pruned fractions it gives add up."""
    points = two_stage.allocate(layers, sparsity, bits)
    bases = [point.threshold * np.sqrt(layer.config.sensitivity) for layer, point in zip(layers, points, strict=True)]
    assert bases == pytest.approx([bases[0]] * len(bases))
    counts = np.array([layer.statistics.count for layer in layers])
    scales = [layer.statistics.laplace_scale for layer in layers]
    pruned = counts @ laplace.pruned_fraction([point.threshold for point in points], scales)
    assert pruned == pytest.approx(sparsity * counts.sum(), rel=1e-6)
    for layer, point, fraction in zip(
        layers, points, laplace.pruned_fraction([p.threshold for p in points], scales), strict=True
    ):
        assert abs(point.num_kept - layer.statistics.count * (1.0 - fraction)) <= 1.0 + 1e-6 * layer.statistics.count


def test_pruning_agrees_with_brute_force():
    """No other thresholds with the same sparsity have a lower weighted pruning error."""
    layers = [layer("a", (1, 3000), [0.5], sensitivity=2.0), layer("b", (1, 1000), [0.1]), layer("c", (1, 500), [1.5])]
    counts = np.array([3000.0, 1000.0, 500.0])
    scales, sensitivity = np.array([0.5, 0.1, 1.5]), np.array([2.0, 1.0, 1.0])

    def error(thresholds):
        return float((sensitivity * counts) @ laplace.pruning_error(thresholds, scales))

    def missed(thresholds):
        return float(counts @ laplace.pruned_fraction(thresholds, scales) / counts.sum() - 0.6)

    found = minimize(
        error, scales, constraints={"type": "eq", "fun": missed}, bounds=[(1e-6, None)] * 3, method="SLSQP", tol=1e-14
    )
    ours = np.array([point.threshold for point in two_stage.allocate(layers, 0.6, 4.0)])
    assert missed(ours) == pytest.approx(0.0, abs=1e-9)
    assert error(ours) <= found.fun * (1.0 + 1e-6)
    assert ours == pytest.approx(found.x, rel=1e-2)


def test_steps_and_clips_agree_with_brute_force():
    """No other steps and clips with the same total width have a lower weighted quantization error."""
    scales, sensitivity, bits = [np.array([0.5, 0.2]), np.array([0.1, 0.15])], [1.0, 3.0], 4.0
    layers = [layer("a", (2, 4000), scales[0]), layer("b", (2, 2000), scales[1], sensitivity=3.0)]
    points = two_stage.allocate(layers, 0.5, bits)
    thresholds = [point.threshold for point in points]
    kept = [
        layer.statistics.count / 2 * np.exp(-threshold / channels)
        for layer, threshold, channels in zip(layers, thresholds, scales, strict=True)
    ]

    def split(x):
        return np.exp(x[:2]), [np.exp(x[2:4]), np.exp(x[4:6])]

    def error(x):
        steps, clips = split(x)
        return sum(
            sensitivity[i]
            * float(kept[i] @ (laplace.granular_error(steps[i]) + laplace.overload_error(clips[i], thresholds[i], scales[i])))
            for i in range(2)
        )

    def missed(x):
        steps, clips = split(x)
        spent = sum(float(kept[i] @ np.log2(2.0 * clips[i] / steps[i])) for i in range(2))
        return spent / sum(k.sum() for k in kept) - bits

    lambdas = two_stage._bit_lambdas(layers, np.array(thresholds), bits)
    clips = [laplace.clip_at(lambdas[i], thresholds[i], scales[i], sensitivity[i]) for i in range(2)]
    ours = np.log(np.concatenate([[points[0].step, points[1].step], *clips]))
    assert missed(ours) == pytest.approx(0.0, abs=1e-9)
    start = ours + np.array([0.3, -0.2, 0.1, 0.2, -0.3, 0.1])
    found = minimize(
        error, start, constraints={"type": "eq", "fun": missed}, method="SLSQP", options={"maxiter": 1000}, tol=1e-15
    )
    assert error(ours) <= found.fun * (1.0 + 1e-6)
    assert ours == pytest.approx(found.x, abs=1e-2)


@given(networks(), st.floats(0.1, 0.9), st.floats(2.0, 8.0))
def test_max_codes_meet_the_mean_width(layers, sparsity, bits):
    """Rounded to whole codewords, the widths of the channels still average to about the requested bits."""
    points = two_stage.allocate(layers, sparsity, bits)
    spent = total = 0.0
    for layer, point in zip(layers, points, strict=True):
        kept = two_stage._channels([layer], [point.threshold]).num_kept
        spent += kept @ np.log2(2.0 * np.array(point.max_codes))
        total += kept.sum()
    assert spent / total == pytest.approx(bits, abs=0.6)


@given(networks(), sparsities, widths, st.floats(1e-3, 1e3))
def test_scaling_all_weights_scales_the_plan(layers, sparsity, bits, factor):
    """Thresholds and steps scale with the weights; num_kept and max_codes do not change."""
    scaled = [
        layer(l.name, l.statistics.shape, l.statistics.channel_scales * factor)
        for l in layers  # noqa: E741
    ]
    for one, other in zip(two_stage.allocate(layers, sparsity, bits), two_stage.allocate(scaled, sparsity, bits), strict=True):
        assert other.threshold == pytest.approx(one.threshold * factor, rel=1e-5)
        assert other.step == pytest.approx(one.step * factor, rel=1e-5)
        assert abs(other.num_kept - one.num_kept) <= 1
        assert np.abs(np.array(other.max_codes) - np.array(one.max_codes)).max() <= 1


@given(networks(), sparsities, widths, st.randoms(use_true_random=False))
def test_the_order_of_layers_does_not_matter(layers, sparsity, bits, random):
    """A permutation of the layers permutes the plan."""
    shuffled = list(layers)
    random.shuffle(shuffled)
    one = {layer.name: point for layer, point in zip(layers, two_stage.allocate(layers, sparsity, bits), strict=True)}
    for layer, point in zip(shuffled, two_stage.allocate(shuffled, sparsity, bits), strict=True):
        assert point.step == pytest.approx(one[layer.name].step, rel=1e-6)
        assert abs(point.num_kept - one[layer.name].num_kept) <= 1


def test_layer_configs_are_met_and_so_is_the_target():
    """A layer gets its fixed sparsity, width or step; the totals are still met."""
    layers = [
        layer("a", (1, 1000), [0.1], sparsity=0.25, bits=6.0),
        layer("b", (1, 4000), [0.2]),
        layer("c", (1, 5000), [0.3], step=0.3),
    ]
    points = two_stage.allocate(layers, 0.8, 5.0)
    assert points[0].num_kept == 750
    assert sum(point.num_kept for point in points) == 2000
    assert np.log2(2.0 * points[0].max_codes[0]) == pytest.approx(6.0, abs=0.1)
    assert points[2].step == pytest.approx(0.3)


def test_a_layer_of_zeros_is_pruned_completely():
    """The zeros of such a layer count as pruned, so fewer weights of the other layers are pruned."""
    layers = [layer("zeros", (1, 1000), [0.0]), layer("b", (1, 1000), [0.2])]
    points = two_stage.allocate(layers, 0.6, 3.0)
    assert [point.num_kept for point in points] == [0, 800]
    assert points[0].step > 0.0


def test_existing_zeros_count_as_pruned():
    """A pruned layer stays as sparse as it was; fewer weights of the others are pruned, and the total is met."""
    layers = [layer("pruned", (1, 1000), [0.2], zeros=900), layer("b", (1, 1000), [0.2]), layer("c", (1, 1000), [0.1])]
    points = two_stage.allocate(layers, 0.6, 3.0)
    assert points[0].num_kept <= 100
    assert sum(point.num_kept for point in points) == 1200
    assert [point.num_kept for point in two_stage.allocate(layers, 0.1, 3.0)] == [100, 1000, 1000]


@pytest.mark.parametrize(
    ("sparsity", "bits", "config", "message"),
    [
        (1.0, 3.0, {}, r"sparsity must lie in \[0, 1\), got 1"),
        (-0.1, 3.0, {}, "sparsity must lie"),
        (0.5, 1.0, {}, r"bits must lie in \(1, 16\], .*got 1"),
        (0.5, 17.0, {}, "bits must lie"),
        (0.1, 3.0, {"sparsity": 0.9}, "sparsity 0.1 is out of reach: layer configs fix 900 zeros"),
        (0.99, 3.0, {"sparsity": 0.1}, "sparsity 0.99 is out of reach"),
        (0.5, 3.0, {"bits": 16.0}, "bits 3 is out of reach: layer configs leave"),
    ],
)
def test_an_unreachable_target_is_an_error(sparsity, bits, config, message):
    """A target out of range, or out of reach because of fixed layers, is a TargetError."""
    layers = [layer("a", (1, 1000), [0.2], **config), layer("b", (1, 500), [0.05])]
    with pytest.raises(TargetError, match=message):
        two_stage.allocate(layers, sparsity, bits)


@given(networks(), sparsities, widths, st.randoms(use_true_random=False))
def test_tied_weights_get_equal_points(layers, sparsity, bits, random):
    """All names of a weight get the same point; the total is exceeded by at most the number of repeats."""
    twins = [random.randint(0, 2) for _ in layers]
    again = [
        Layer(f"{layer.name}, again {number}", layer.statistics, layer.config, repeats=layer.name)
        for layer, twin in zip(layers, twins, strict=True)
        for number in range(twin)
    ]
    points = dict(zip([*layers, *again], two_stage.allocate([*layers, *again], sparsity, bits), strict=True))
    first = {layer.name: point for layer, point in points.items()}
    assert all(points[layer] == first[layer.repeats] for layer in again)
    total = sum(layer.statistics.count for layer in points)
    wanted = total - round(sparsity * total)
    assert 0 <= sum(point.num_kept for point in points.values()) - wanted <= max(twins)
