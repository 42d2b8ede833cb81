"""`opq.compress`: a state dict and a target to the bytes of a file."""

import re

import numpy as np
import pytest
from float16_errors import within_float16
from hypothesis import assume, given
from hypothesis import strategies as st
from thoroughness import examples, one_in

import opq
from opq import dtypes
from opq.codec.code_length import context_gain
from opq.codec.file_reader import OpqFile
from opq.quantization.codebook import UniformCodebook
from opq.text_table import file_summary, size_text

EXACT, SQUARED = {"auxiliary": "exact"}, {"cost": "squared"}


def dense_bytes(state):
    return sum(array.nbytes for array in state.values())


@pytest.mark.parametrize("ratio", [3, 5, 10, 15, 20])
def test_a_ratio_is_met_closely(network, ratio):
    """The whole file takes at most dense / ratio bytes, and at least 98% of that."""
    compressed = opq.compress(network, ratio=ratio)
    assert compressed.dense_bytes == dense_bytes(network)
    budget = dense_bytes(network) / ratio
    assert 0.98 * budget <= len(compressed.data) <= budget
    assert compressed.file_ratio >= ratio


@pytest.mark.slow
@examples(20)
@given(st.integers(0, 2**32 - 1), st.floats(0.35, 6.0), st.sampled_from(["float32", "float16", "bfloat16", "float64"]))
def test_a_size_is_met_for_any_weights(seed, bits, dtype):
    """The size is met for random shapes, distributions and dtypes."""
    rng = np.random.default_rng(seed)
    state = {}
    for number in range(rng.integers(1, 5)):
        shape = tuple(rng.integers(5, 60, rng.integers(2, 4)))
        draw = rng.choice([rng.laplace, rng.normal, rng.standard_t], p=[0.4, 0.4, 0.2])
        weight = draw(3, size=shape) - 3 if draw == rng.standard_t else draw(size=shape)
        state[f"w{number}"] = (weight * 10.0 ** rng.uniform(-3, 0)).astype(dtypes.NUMPY[dtype])
    count = sum(array.size for array in state.values())
    assume(count > 4000)
    size = int(count * bits / 8) + 300 + 16 * len(state)
    compressed = opq.compress(state, size=size)
    assert len(compressed.data) <= size
    assert len(compressed.data) >= 0.98 * size


@pytest.mark.parametrize(
    "options", [{"ratio": 8}, {"sparsity": 0.8, "bits": 3}, {"size": "20kB", "auxiliary": "float16"}, {"ratio": 8, **EXACT}]
)
def test_weights_come_back_as_fake_quantize(network, options):
    """Weights of the file are bit-equal to fake_quantize in memory. Vectors have the error of float16, integers none; with
    "exact" both are bit for bit the same.
    """
    compressed = opq.compress(network, **options)
    with OpqFile(compressed.data) as file:
        assert sorted(file) == sorted(network)
        for name, original in network.items():
            value = file.array(name)
            assert (value.shape, value.dtype) == (original.shape, original.dtype)
            if name in compressed.plan.layers:
                assert value.tobytes() == opq.functional.fake_quantize(original, compressed.plan.layers[name]).tobytes()
            elif options.get("auxiliary") == "exact" or original.dtype.kind == "i":
                assert value.tobytes() == original.tobytes()
            else:
                assert within_float16(value, original)
                assert value.tobytes() != original.tobytes()


def test_float16_is_used_only_if_the_error_is_small(network):
    """A tensor with a value that float16 cannot hold stays exact, as its entry shows. A tiny value may become zero only among
    others of either sign.
    """
    network["tiny.weight"] = np.array([1.0, 1e-7], dtype=np.float32)
    network["signed.weight"] = np.array([-1.0, 1e-8], dtype=np.float32)
    network["huge.weight"] = np.array([1.0, 1e6], dtype=np.float32)
    network["nan.weight"] = np.array([1.0, np.nan], dtype=np.float32)
    with OpqFile(opq.compress(network, ratio=6, auxiliary="float16").data) as file:
        stored = {entry.name: entry.storage for entry in file.entries}
        assert {stored[f"{name}.weight"] for name in ("tiny", "huge", "nan")} == {"exact"}
        assert stored["fc.bias"] == stored["signed.weight"] == "float16"
        assert file.array("tiny.weight").tobytes() == network["tiny.weight"].tobytes()
        assert file.array("signed.weight").tolist() == [-1.0, 0.0]


def test_the_two_stage_mode_meets_the_sparsity_exactly(network):
    """The number of zeros in the file is the requested one; no code exceeds the max_codes of its channel."""
    compressed = opq.compress(network, sparsity=0.7, bits=4)
    zeros = total = 0
    with OpqFile(compressed.data) as file:
        for name, layer in compressed.plan.layers.items():
            codes = file[name].codes
            zeros, total = zeros + (codes == 0).sum(), total + codes.size
            assert np.count_nonzero(codes) == layer.num_kept
            assert (np.abs(codes).reshape(codes.shape[0], -1).max(axis=1) <= layer.max_codes).all()
    assert zeros == round(0.7 * total)


def test_the_same_input_gives_the_same_bytes(network):
    """Two runs, and any order of the tensors, give the same bytes."""
    once = opq.compress(network, ratio=10).data
    assert opq.compress(network, ratio=10).data == once
    assert opq.compress(dict(reversed(network.items())), ratio=10).data == once


def test_a_plan_reproduces_its_file(network):
    """The plan of a compressed model gives the same bytes again, also after JSON."""
    compressed = opq.compress(network, ratio=10)
    plan = opq.Plan.from_json(compressed.plan.to_json())
    assert opq.compress(network, plan).data == compressed.data


@pytest.mark.parametrize("options", [{"ratio": 5}, {"ratio": 12}, {"sparsity": 0.8, "bits": 3}])
def test_a_plan_predicts_the_size_of_its_file(network, options):
    """The predicted bytes are within 2% of the real ones, even for few weights."""
    plan = opq.plan(network, **options)
    assert plan.predicted_bytes == pytest.approx(len(opq.compress(network, plan).data), rel=0.02)


def test_layer_configs_and_exclusions_reach_the_file(network):
    """A fixed step is the file's step, an excluded weight is exact, and the target still holds."""
    step = float(np.float32(0.03))
    options = {"layers": {"fc.weight": opq.LayerConfig(step=step)}, "exclude": ["conv1.weight"], "ratio": 8}
    compressed = opq.compress(network, **options)
    assert len(compressed.data) <= dense_bytes(network) / 8
    with OpqFile(compressed.data) as file:
        assert file["fc.weight"].codebook == UniformCodebook(step)
        assert file["conv1.weight"].tobytes() == network["conv1.weight"].tobytes()


def test_sensitive_weights_get_smaller_steps(network):
    """Four times the sensitivity halves the step relative to the other layers."""
    plan = opq.plan(network, ratio=8, layers={"fc.weight": opq.LayerConfig(sensitivity=4.0)})
    even = opq.plan(network, ratio=8)
    ratio = (plan.layers["fc.weight"].step / plan.layers["layer2.conv.weight"].step) / (
        even.layers["fc.weight"].step / even.layers["layer2.conv.weight"].step
    )
    assert 0.4 < ratio < 0.7


def test_float16_at_the_end_of_its_range_stays_finite():
    """Rounding never gives infinity for a finite weight, and the file passes `verify`."""
    weight = np.random.default_rng(0).uniform(-65000, 65000, (128, 128)).astype(np.float16)
    data = opq.compress({"w": weight}, ratio=4).data
    with OpqFile(data) as file:
        assert np.isfinite(file.array("w")).all()
    assert opq.verify(data).weights == 1


def test_zeros_of_a_pruned_checkpoint_count(network):
    """Existing zeros count towards the sparsity, which is met exactly."""
    weight = network["layer1.conv.weight"]
    weight[np.abs(weight) < np.quantile(np.abs(weight), 0.9)] = 0.0
    compressed = opq.compress(network, sparsity=0.6, bits=4)
    with OpqFile(compressed.data) as file:
        codes = [file[name].codes for name in compressed.plan.layers]
    assert sum((c == 0).sum() for c in codes) == round(0.6 * sum(c.size for c in codes))


def test_tied_weights_are_stored_once(network):
    """A weight that repeats another one shares its section, and the plan predicts that."""
    network["tied.weight"] = network["layer2.conv.weight"].copy()
    for options in ({"sparsity": 0.501, "bits": 4}, {"ratio": 10}):
        tied = opq.compress(network, **options)
        with OpqFile(tied.data) as file:
            sections = {entry.name: entry.section for entry in file.entries}
            assert sections["tied.weight"] == sections["layer2.conv.weight"]
            assert file.array("tied.weight").tobytes() == file.array("layer2.conv.weight").tobytes()
        assert tied.plan.predicted_bytes == pytest.approx(len(tied.data), rel=0.02)


@pytest.mark.parametrize("ratio", [1.0, 1.2, 5000.0])
def test_an_unreachable_target_gives_the_reachable_range(network, ratio):
    """The error gives the range of ratios; ratios just inside it can be reached."""
    with pytest.raises(
        opq.TargetError, match=r"is out of reach; reachable with the selected tensors: [\d,]+ to [\d,]+ bytes"
    ) as caught:
        opq.compress(network, ratio=ratio)
    low, high = (float(number) for number in str(caught.value).rsplit("ratios ", 1)[1].split(" to "))
    assert opq.compress(network, ratio=low * 1.01).file_ratio >= low
    assert opq.compress(network, ratio=high * 0.99).file_ratio >= 0.98 * high


DEGENERATE = {
    "zeros": np.zeros((8, 8), dtype=np.float32),
    "constant": np.full((8, 8), 0.25, dtype=np.float32),
    "nearly_constant": np.float32(0.25) + np.arange(64, dtype=np.float32).reshape(8, 8) * np.float32(2.0**-20),
    "outlier": np.where(np.arange(64) == 5, 1.0, np.arange(64) * 1e-30).astype(np.float32).reshape(8, 8),
    "single": np.array([[0.5]], dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "empty_too": np.zeros((4, 0), dtype=np.float32),
}


@pytest.mark.parametrize("options", [{"ratio": 4}, {"sparsity": 0.5, "bits": 4}])
def test_degenerate_layers_are_compressed(network, options):
    """Layers of zeros, of one value, of one weight and without weights come back, and are exact if they have few values."""
    state = {**network, **DEGENERATE}
    with OpqFile(opq.compress(state, **options).data) as file:
        assert set(file) == set(state)
        assert all(file.array(name).shape == array.shape for name, array in state.items())
        exact = DEGENERATE.keys() - {"nearly_constant", "outlier"}
        assert all(file.array(name).tobytes() == DEGENERATE[name].tobytes() for name in exact)


@pytest.mark.parametrize("name", ["nearly_constant"])
def test_a_network_of_one_degenerate_layer_is_compressed(name):
    """A network of only such a layer has an error of at most half a step."""
    with OpqFile(opq.compress({name: DEGENERATE[name]}, sparsity=0.0, bits=4).data) as file:
        error = np.abs(file.array(name) - DEGENERATE[name]).max()
        assert error <= 0.5 * file[name].codebook.step


def test_a_source_without_weights_is_refused():
    """A state dict without weights is a TargetError, one without tensors a SourceError."""
    with pytest.raises(opq.TargetError, match="there is no weight to compress"):
        opq.compress({"bias": np.ones(3, dtype=np.float32)}, ratio=2)
    with pytest.raises(opq.SourceError, match="it holds no tensors"):
        opq.compress({}, ratio=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(network, bad):
    """The error names the tensor and suggests `exclude`, which works."""
    network["layer1.conv.weight"][0, 0, 0, 0] = bad
    with pytest.raises(opq.WeightError, match=r"'layer1.conv.weight'.*1 value is NaN or infinite.*exclude"):
        opq.compress(network, ratio=4)
    assert opq.compress(network, ratio=2, exclude=["layer1.conv.weight"]).file_ratio >= 2


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_values_beyond_any_float32_step_are_named(scale):
    """A float64 weight whose step float32 cannot hold is a WeightError with its name, not a weight of zeros."""
    state = {"w": np.random.default_rng(0).laplace(scale=scale, size=(100, 100))}
    with pytest.raises(opq.WeightError, match=r"tensor 'w'.*beyond what a float32 step can quantize"):
        opq.compress(state, sparsity=0.5, bits=4)


@pytest.mark.parametrize(
    ("scale", "options"),
    [
        *((scale, options) for scale in (1e-30, 1e-42) for options in ({"ratio": 8, **SQUARED}, {"sparsity": 0.6, "bits": 4})),
        *((scale, {"ratio": 8}) for scale in (1e-35, 1e-42)),
    ],
)
def test_a_layer_of_tiny_weights_is_pruned_completely(network, options, scale):
    """Layers of tiny, even subnormal, weights, as weight decay leaves them, come back as zeros. With balanced costs these are
    the ones for which float32 has no steps.
    """
    network["tiny.weight"] = np.random.default_rng(0).laplace(scale=scale, size=(20, 20)).astype(np.float32)
    with OpqFile(opq.compress(network, **options).data) as file:
        assert not file.array("tiny.weight").any()


def test_a_plan_for_other_weights_is_refused(network):
    """A missing layer, another shape or another dtype is a PlanError; keywords beside a plan are a TypeError."""
    plan = opq.plan(network, ratio=10)
    other = dict(network)
    other["fc.weight"] = np.ones((10, 65), dtype=np.float32)
    with pytest.raises(
        opq.PlanError, match=r"layer 'fc.weight': the plan has shape \(10, 64\), but the checkpoint has \(10, 65\)"
    ):
        opq.compress(other, plan)
    other["fc.weight"] = np.ones((10, 64), dtype=np.int32)
    with pytest.raises(opq.PlanError, match=r"layer 'fc\.weight': the checkpoint's dtype must be one of .*, got int32"):
        opq.compress(other, plan)
    del other["fc.weight"]
    with pytest.raises(opq.PlanError, match=r"a layer 'fc\.weight', which the checkpoint does not have"):
        opq.compress(other, plan)
    with pytest.raises(TypeError, match=r"compress\(\) takes a plan or keywords, got both a plan and 'ratio'"):
        opq.compress(network, plan, ratio=3)


def test_weights_that_end_in_zeros_are_predicted():
    """Weights whose second half is zero meet the requested size like any others."""
    weight = np.zeros((40, 300), dtype=np.float32)
    weight[:20] = np.random.default_rng(0).laplace(size=(20, 300))
    assert context_gain([np.rint(4 * weight).astype(np.int32)]).gain > 0.3
    for ratio in (4, 8, 16):
        budget = weight.nbytes / ratio
        assert 0.98 * budget <= opq.compress({"w": weight}, ratio=ratio).file_bytes <= budget


def test_a_file_that_expands_too_far_is_refused():
    """A file that readers refuse is not written."""
    state = {"zeros": np.zeros((5000, 4000), dtype=np.float32)}
    state["zeros"][0, :16] = np.arange(16)
    with pytest.raises(opq.TargetError, match="readers refuse to expand it further"):
        opq.compress(state, sparsity=0.5, bits=4)


REAL = [
    (name, ratio)
    for name in ("resnet20_cifar10", "resnet56_cifar10", "mobilenet_v1_0.75_imagenet")
    for ratio in one_in(4 if name == "resnet56_cifar10" else 2, (10, 4, 40, 20))
]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("name", "ratio"), REAL)
def test_real_networks_meet_their_ratios(data_folder, name, ratio):
    """Files of pretrained networks take at most dense / ratio bytes, and at least 98% of that."""
    compressed = opq.compress(data_folder / "weights" / f"{name}.safetensors", ratio=ratio)
    budget = compressed.dense_bytes / ratio
    assert 0.98 * budget <= compressed.file_bytes <= budget


@pytest.mark.parametrize("draw", ["uniform", "normal", "laplace"])
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_a_fixed_sparsity_is_met(draw, sparsity):
    """With a byte target and deadzone rounding a layer of any density gets the requested fraction of zeros."""
    rng = np.random.default_rng(0)
    fixed = {"uniform": lambda: rng.uniform(-1, 1, (128, 256)), "normal": lambda: rng.normal(size=(128, 256))}
    state = {"a": fixed.get(draw, lambda: rng.laplace(size=(128, 256)))(), "b": rng.laplace(size=(128, 256))}
    state = {name: 0.1 * value.astype(np.float32) for name, value in state.items()}
    made = opq.compress(state, ratio=14, rounding="deadzone", layers={"a": opq.LayerConfig(sparsity=sparsity)})
    with OpqFile(made.data) as file:
        assert float((file["a"].codes == 0).mean()) == pytest.approx(sparsity, abs=0.01)
    assert made.plan.layers["a"].sparsity == pytest.approx(sparsity, abs=0.01)


@pytest.mark.parametrize("rounding", ["deadzone", "compensated"])
@pytest.mark.parametrize("sparsity", [0.0001, 0.5, 0.991, 0.995, 0.9999])
def test_a_fixed_sparsity_is_met_for_few_large_weights(rounding, sparsity):
    """A layer of 99% zeros keeps them, and as many more weights become zero as requested, even the largest ones."""
    rng = np.random.default_rng(0)
    state = {name: rng.laplace(size=(128, 256)).astype(np.float32) for name in "ab"}
    state["a"][rng.random((128, 256)) < 0.99] = 0.0
    zeros = float((state["a"] == 0).mean())
    made = opq.compress(state, ratio=8, rounding=rounding, layers={"a": opq.LayerConfig(sparsity=sparsity)})
    with OpqFile(made.data) as file:
        assert float((file["a"].codes == 0).mean()) == pytest.approx(max(sparsity, zeros), abs=5e-4)


@pytest.mark.parametrize("options", [{"ratio": 8}, {"sparsity": 0.7, "bits": 4}, {"lossless": True}])
def test_a_compressed_model_counts_its_weights(network, options):
    """Sparsity, number of weights and bits per weight are those of the file; a shared weight counts once."""
    network["tied.weight"] = network["layer2.conv.weight"].copy()
    network["pruned.weight"] = np.repeat(np.float32([[0.0, 0.5], [0.0, 0.0]]), 50, axis=1)
    made = opq.compress(network, **options)
    with OpqFile(made.data) as file:
        codes = {name: tensor.codes for name, tensor in file.items() if isinstance(tensor, opq.CompressedTensor)}
    assert made.layout.nonzero == {name: np.count_nonzero(values) for name, values in codes.items()}
    codes.pop("tied.weight", None)
    count = sum(values.size for values in codes.values())
    assert made.num_weights == count > 0
    assert made.sparsity == pytest.approx(sum((values == 0).sum() for values in codes.values()) / count)
    assert made.bits_per_weight == pytest.approx(8.0 * len(made.data) / count)
    assert made.file_ratio == made.dense_bytes / len(made.data)
    assert made.sparsity == pytest.approx(opq.inspect(made.data).sparsity)


def test_a_compressed_model_prints_one_line(network):
    """The line has the size, the ratio, the dense size, the bits per weight and the fraction of zeros."""
    made = opq.compress(network, ratio=8)
    match = re.fullmatch(
        r"([\d.]+) kB, ([\d.]+)x smaller than ([\d.]+) kB \(([\d.]+) bits per weight, (\d+)% zeros\)", str(made).split("\n")[0]
    )
    assert float(match[1]) == pytest.approx(made.file_bytes / 1000, abs=0.051)
    assert float(match[2]) == pytest.approx(made.file_ratio, abs=0.051)
    assert float(match[3]) == pytest.approx(made.dense_bytes / 1000, abs=0.51)
    assert float(match[4]) == pytest.approx(made.bits_per_weight, abs=0.0051)
    assert float(match[5]) == pytest.approx(100 * made.sparsity, abs=0.51)
    assert str(made) in repr(made)


def test_a_compressed_model_without_weights_prints_its_size():
    """Without weights there are no bits per weight and no sparsity."""
    made = opq.compress({"bias": np.arange(100.0)}, lossless=True)
    assert (made.num_weights, made.bits_per_weight, made.sparsity) == (0, None, None)
    assert re.fullmatch(r"\d+ B, [\d.]+x smaller than 800 B", str(made))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((2_340_000, 46_800_000, 1.6, 0.55), "2.34 MB, 20.0x smaller than 46.8 MB (1.60 bits per weight, 55% zeros)"),
        ((999, 999_600, None, None), "999 B, 1000.6x smaller than 1.00 MB"),
        ((1000, 99_960, 8.0, 0.0), "1.00 kB, 100.0x smaller than 100 kB (8.00 bits per weight, 0% zeros)"),
        ((123_456_789_012, 10**15, 0.5, 1.0), "123 GB, 8100.0x smaller than 1000000 GB (0.50 bits per weight, 100% zeros)"),
    ],
)
def test_the_summary_of_a_file(arguments, line):
    """Sizes have three digits and decimal units."""
    assert file_summary(*arguments) == line


@given(st.integers(1, 10**12 - 1))
def test_sizes_have_three_digits(size):
    """The printed size is within half a unit of the third digit."""
    number, unit = size_text(size).split()
    factor = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}[unit]
    assert float(number) * factor == pytest.approx(size, rel=0.005)
    assert len(number.replace(".", "")) <= 3 or float(number) == 1000


def test_progress_counts_the_weights(network):
    """The callback gets the stage, first measuring and then encoding, the number of finished weights and the number of all."""
    calls = []
    plan = opq.compress(network, ratio=8).plan
    opq.compress(network, plan, progress=lambda *call: calls.append(call))
    assert calls == [(stage, number, 4) for stage in ("measuring", "encoding") for number in (1, 2, 3, 4)]
