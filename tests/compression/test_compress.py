"""The main job in memory: a state dict and a target in, the bytes of a file out."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import opq
from opq import dtypes
from opq.codec.code_length import context_gain
from opq.codec.file_reader import OpqFile


def dense_bytes(state):
    return sum(array.nbytes for array in state.values())


@pytest.mark.parametrize("ratio", [3, 5, 10, 15, 20])
def test_a_ratio_is_met_from_below_and_closely(network, ratio):
    """The file takes at most dense / ratio bytes, all of it counted, and at least 98% of that."""
    compressed = opq.compress(network, ratio=ratio)
    assert compressed.dense_bytes == dense_bytes(network)
    budget = dense_bytes(network) / ratio
    assert 0.98 * budget <= len(compressed.data) <= budget
    assert compressed.file_ratio >= ratio


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.35, 6.0), st.sampled_from(["float32", "float16", "bfloat16", "float64"]))
def test_a_size_is_met_whatever_the_weights(seed, bits, dtype):
    """Random shapes, distributions and dtypes: the size is met all the same."""
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


@pytest.mark.parametrize("options", [{"ratio": 8}, {"sparsity": 0.8, "bits": 3}, {"size": "20kB", "auxiliary": "half"}])
def test_what_comes_back_is_fake_quantize(network, options):
    """Weights from the file are bit-equal to fake_quantize in memory; auxiliary tensors are bit-exact unless halved."""
    compressed = opq.compress(network, **options)
    with OpqFile(compressed.data) as file:
        assert sorted(file) == sorted(network)
        for name, original in network.items():
            value = file.array(name)
            assert (value.shape, value.dtype) == (original.shape, original.dtype)
            if name in compressed.plan.layers:
                assert value.tobytes() == opq.fake_quantize(original, compressed.plan.layers[name]).tobytes()
            elif options.get("auxiliary") != "half":
                assert value.tobytes() == original.tobytes()
            else:
                np.testing.assert_allclose(value, original, rtol=2.0**-11)


def test_half_stores_only_what_it_can(network):
    """A tensor with a value that float16 would lose stays exact, and the file says which."""
    network["bn.tiny"] = np.array([1.0, 1e-7], dtype=np.float32)
    network["bn.huge"] = np.array([1.0, 1e6], dtype=np.float32)
    network["bn.nan"] = np.array([1.0, np.nan], dtype=np.float32)
    with OpqFile(opq.compress(network, ratio=6, auxiliary="half").data) as file:
        stored = {entry.name: entry.storage for entry in file.entries}
        assert {stored["bn.tiny"], stored["bn.huge"], stored["bn.nan"]} == {"exact"}
        assert stored["fc.bias"] == ("half" if np.abs(network["fc.bias"]).min() >= 2.0**-14 else "exact")
        np.testing.assert_array_equal(file.array("bn.tiny"), network["bn.tiny"])


def test_paper_mode_keeps_exactly_the_asked_number(network):
    """The zeros of the file are the asked sparsity, to the weight; no code exceeds its channel's limit."""
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
    """Twice, and in any order of tensors."""
    once = opq.compress(network, ratio=10).data
    assert opq.compress(network, ratio=10).data == once
    assert opq.compress(dict(reversed(network.items())), ratio=10).data == once


def test_a_plan_followed_gives_the_file_it_was_made_for(network):
    """A plan taken from one compression, through JSON, gives the same bytes again."""
    compressed = opq.compress(network, ratio=10)
    plan = opq.Plan.from_json(compressed.plan.to_json())
    assert opq.compress(network, plan=plan).data == compressed.data


@pytest.mark.parametrize("options", [{"ratio": 5}, {"ratio": 12}, {"sparsity": 0.8, "bits": 3}])
def test_a_plan_predicts_its_file(network, options):
    """The predicted bytes are within 2% of the real ones, even on weights so few that learning them is half the story."""
    plan = opq.plan(network, **options)
    assert plan.predicted_bytes == pytest.approx(len(opq.compress(network, plan=plan).data), rel=0.02)


def test_overrides_and_exclusions_reach_the_file(network):
    """A fixed step is the file's step, an excluded weight is exact, and the target still holds."""
    step = float(np.float32(0.03))
    options = {"overrides": {"fc.weight": {"step": step}}, "exclude": ["conv1.weight"], "ratio": 8}
    compressed = opq.compress(network, **options)
    assert len(compressed.data) <= dense_bytes(network) / 8
    with OpqFile(compressed.data) as file:
        assert file["fc.weight"].step == step
        assert file["conv1.weight"].tobytes() == network["conv1.weight"].tobytes()


def test_more_sensitive_weights_get_finer_steps(network):
    """Four times the sensitivity halves the step, all else equal."""
    plan = opq.plan(network, ratio=8, sensitivity={"fc.weight": 4.0})
    even = opq.plan(network, ratio=8)
    ratio = (plan.layers["fc.weight"].step / plan.layers["layer2.conv.weight"].step) / (
        even.layers["fc.weight"].step / even.layers["layer2.conv.weight"].step
    )
    assert 0.4 < ratio < 0.7


def test_float16_at_the_end_of_its_range_stays_finite():
    """Rounding to a codebook never turns a finite weight into infinity, and the file proves whole."""
    weight = np.random.default_rng(0).uniform(-65000, 65000, (128, 128)).astype(np.float16)
    data = opq.compress({"w": weight}, ratio=4).data
    with OpqFile(data) as file:
        assert np.isfinite(file.array("w")).all()
    assert opq.verify(data).weights == 1


def test_a_checkpoint_pruned_before_keeps_its_zeros_and_meets_the_sparsity(network):
    """Weights that are zero already count as zeros of the target, to the weight."""
    weight = network["layer1.conv.weight"]
    weight[np.abs(weight) < np.quantile(np.abs(weight), 0.9)] = 0.0
    compressed = opq.compress(network, sparsity=0.6, bits=4)
    with OpqFile(compressed.data) as file:
        codes = [file[name].codes for name in compressed.plan.layers]
    assert sum((c == 0).sum() for c in codes) == round(0.6 * sum(c.size for c in codes))


def test_tied_weights_are_stored_once(network):
    """A weight that repeats another has no section of its own, and the plan knows."""
    network["tied.weight"] = network["layer2.conv.weight"].copy()
    for options in ({"sparsity": 0.501, "bits": 4}, {"ratio": 10}):
        tied = opq.compress(network, **options)
        with OpqFile(tied.data) as file:
            sections = {entry.name: entry.section for entry in file.entries}
            assert sections["tied.weight"] == sections["layer2.conv.weight"]
            assert file.array("tied.weight").tobytes() == file.array("layer2.conv.weight").tobytes()
        assert tied.plan.predicted_bytes == pytest.approx(len(tied.data), rel=0.02)


@pytest.mark.parametrize("ratio", [1.0, 1.2, 5000.0])
def test_an_unreachable_target_says_what_is_reachable(network, ratio):
    """Too small or too large: the error gives the range, and the nearest reachable ratios inside of it work."""
    with pytest.raises(
        opq.TargetError, match=r"is out of reach: this network, so selected, gives [\d,]+ to [\d,]+ bytes"
    ) as caught:
        opq.compress(network, ratio=ratio)
    low, high = (float(number) for number in str(caught.value).rsplit("ratios ", 1)[1].split(" to "))
    assert opq.compress(network, ratio=low * 1.01).file_ratio >= low
    assert opq.compress(network, ratio=high * 0.99).file_ratio >= 0.98 * high


ODD = {
    "zeros": np.zeros((8, 8), dtype=np.float32),
    "constant": np.full((8, 8), 0.25, dtype=np.float32),
    "single": np.array([[0.5]], dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "empty_too": np.zeros((4, 0), dtype=np.float32),
}


@pytest.mark.parametrize("options", [{"ratio": 4}, {"sparsity": 0.5, "bits": 4}])
def test_odd_layers_are_no_trouble(network, options):
    """Layers of zeros, of one value, of one weight, or of none come back whole; zeros come back as zeros."""
    state = {**network, **ODD}
    with OpqFile(opq.compress(state, **options).data) as file:
        assert set(file) == set(state)
        assert all(file.array(name).shape == array.shape for name, array in state.items())
        assert not file.array("zeros").any()


@pytest.mark.parametrize("name", ["zeros", "constant", "single"])
def test_a_network_of_one_odd_layer_compresses_in_paper_mode(name):
    """Alone, they are compressed too, whatever is asked of so little."""
    with OpqFile(opq.compress({name: ODD[name]}, sparsity=0.0, bits=4).data) as file:
        error = np.abs(file.array(name) - ODD[name]).max()
        assert error <= 0.5 * file[name].step


def test_what_has_no_weights_says_so():
    """A state dict without a single weight, or without tensors, is refused in one line."""
    with pytest.raises(opq.TargetError, match="there is no weight to compress"):
        opq.compress({"bias": np.ones(3, dtype=np.float32)}, ratio=2)
    with pytest.raises(opq.SourceError, match="it holds no tensors"):
        opq.compress({}, ratio=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(network, bad):
    """The error names the tensor and offers the way out, which works."""
    network["layer1.conv.weight"][0, 0, 0, 0] = bad
    with pytest.raises(opq.WeightError, match=r"'layer1.conv.weight'.*1 of its values are NaN or infinite.*exclude"):
        opq.compress(network, ratio=4)
    assert opq.compress(network, ratio=2, exclude=["layer1.conv.weight"]).file_ratio >= 2


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_values_beyond_any_float32_step_are_named(scale):
    """A float64 weight whose step float32 cannot hold is refused by name, not quietly turned into zeros."""
    state = {"w": np.random.default_rng(0).laplace(scale=scale, size=(100, 100))}
    with pytest.raises(opq.WeightError, match=r"tensor 'w'.*beyond what a float32 step can quantize"):
        opq.compress(state, sparsity=0.5, bits=4)


@pytest.mark.parametrize("options", [{"ratio": 8}, {"sparsity": 0.6, "bits": 4}])
@pytest.mark.parametrize("scale", [1e-30, 1e-42])
def test_a_layer_that_died_away_is_pruned_whole(network, options, scale):
    """Weight decay leaves layers of next to nothing, even below the normal floats; they come back as zeros."""
    network["dead.weight"] = np.random.default_rng(0).laplace(scale=scale, size=(20, 20)).astype(np.float32)
    with OpqFile(opq.compress(network, **options).data) as file:
        assert not file.array("dead.weight").any()


def test_a_plan_for_other_weights_is_refused(network):
    """A missing layer, another shape, or options beside a plan are errors."""
    plan = opq.plan(network, ratio=10)
    other = dict(network)
    other["fc.weight"] = np.ones((10, 65), dtype=np.float32)
    with pytest.raises(opq.PlanError, match=r"layer 'fc.weight': made for shape \(10, 64\), the checkpoint has \(10, 65\)"):
        opq.compress(other, plan=plan)
    other["fc.weight"] = np.ones((10, 64), dtype=np.int32)
    with pytest.raises(opq.PlanError, match=r"layer 'fc\.weight': the checkpoint has int32, which cannot be quantized"):
        opq.compress(other, plan=plan)
    del other["fc.weight"]
    with pytest.raises(opq.PlanError, match=r"a layer 'fc\.weight', which the checkpoint lacks"):
        opq.compress(other, plan=plan)
    with pytest.raises(opq.TargetError, match="a plan already says ratio"):
        opq.compress(network, plan=plan, ratio=3)


def test_an_excerpt_that_ends_in_zeros_does_not_stop_the_forecast():
    """Weights whose second half is zero are forecast and compressed to the asked size like any others."""
    weight = np.zeros((40, 300), dtype=np.float32)
    weight[:20] = np.random.default_rng(0).laplace(size=(20, 300))
    assert context_gain([np.rint(4 * weight).astype(np.int32)]).gain > 0.3
    for ratio in (4, 8, 16):
        budget = weight.nbytes / ratio
        assert 0.98 * budget <= opq.compress({"w": weight}, ratio=ratio).file_bytes <= budget


def test_what_would_expand_too_far_is_refused():
    """A file that its own readers would refuse is not written."""
    state = {"zeros": np.zeros((5000, 4000), dtype=np.float32)}
    with pytest.raises(opq.TargetError, match="readers refuse to expand that far"):
        opq.compress(state, sparsity=0.5, bits=4)


@pytest.mark.data
@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet56_cifar10", "mobilenet_v1_0.75_imagenet"])
@pytest.mark.parametrize("ratio", [4, 10, 20, 40])
def test_real_networks_meet_their_ratios(data_folder, name, ratio):
    """Pretrained networks: at most dense / ratio bytes, at least 98% of that."""
    compressed = opq.compress(data_folder / "weights" / f"{name}.safetensors", ratio=ratio)
    budget = compressed.dense_bytes / ratio
    assert 0.98 * budget <= compressed.file_bytes <= budget


@pytest.mark.parametrize("draw", ["uniform", "normal", "laplace"])
@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9])
def test_a_fixed_sparsity_is_the_layers_own(draw, sparsity):
    """With a byte target too, whatever a layer's density, plain rounding leaves the asked share of it at zero."""
    rng = np.random.default_rng(0)
    fixed = {"uniform": lambda: rng.uniform(-1, 1, (128, 256)), "normal": lambda: rng.normal(size=(128, 256))}
    state = {"a": fixed.get(draw, lambda: rng.laplace(size=(128, 256)))(), "b": rng.laplace(size=(128, 256))}
    state = {name: 0.1 * value.astype(np.float32) for name, value in state.items()}
    made = opq.compress(state, ratio=14, rounding="plain", overrides={"a": {"sparsity": sparsity}})
    with OpqFile(made.data) as file:
        assert float((file["a"].codes == 0).mean()) == pytest.approx(sparsity, abs=0.01)
    assert made.plan.layers["a"].sparsity == pytest.approx(sparsity, abs=0.01)


@pytest.mark.parametrize("rounding", ["plain", "shaped"])
@pytest.mark.parametrize("sparsity", [0.0001, 0.5, 0.991, 0.995, 0.9999])
def test_a_fixed_sparsity_holds_for_few_large_weights(rounding, sparsity):
    """A layer that is 99% zeros keeps those zeros, and loses as many more as are asked for, however far out they lie."""
    rng = np.random.default_rng(0)
    state = {name: rng.laplace(size=(128, 256)).astype(np.float32) for name in "ab"}
    state["a"][rng.random((128, 256)) < 0.99] = 0.0
    zeros = float((state["a"] == 0).mean())
    made = opq.compress(state, ratio=8, rounding=rounding, overrides={"a": {"sparsity": sparsity}})
    with OpqFile(made.data) as file:
        assert float((file["a"].codes == 0).mean()) == pytest.approx(max(sparsity, zeros), abs=5e-4)
