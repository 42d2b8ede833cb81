"""`scales="rows"`: from a config to a file whose rows have steps of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thoroughness import examples

import opq
import opq.numpy
from opq import dtypes
from opq.codec.weight_section import encode_scales
from opq.functional import fake_quantize, measure
from opq.quantization.codebook import ScaledCodebook
from opq.rate_distortion.scales import measured_rows


def uneven(network: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """A network whose rows differ in magnitude by up to six octaves."""
    rng = np.random.default_rng(seed)

    def factors(array: np.ndarray) -> np.ndarray:
        return np.exp2(rng.uniform(-3.0, 3.0, len(array))).astype(array.dtype).reshape(-1, *(1,) * (array.ndim - 1))

    return {name: array * factors(array) if array.ndim > 1 else array for name, array in network.items()}


def weights_of(state: dict[str, np.ndarray]) -> list[str]:
    return sorted(name for name, array in state.items() if array.ndim > 1)


@pytest.mark.parametrize("rounding", ["compensated", "deadzone"])
@pytest.mark.parametrize("ratio", [4, 10])
def test_rows_have_the_scales_of_their_magnitudes(network, rounding, ratio):
    """Each matrix and kernel has the measured scales of its rows, in the plan and in the file, and values of fake_quantize."""
    state = uneven(network)
    compressed = opq.compress(state, ratio=ratio, scales="rows", rounding=rounding)
    opq.verify(compressed.data)
    assert sum(array.nbytes for array in state.values()) / len(compressed.data) == pytest.approx(ratio, rel=0.005)
    with opq.OpqFile(compressed.data) as file:
        for name in weights_of(state):
            layer, tensor = compressed.plan.layers[name], file[name]
            assert layer.columns is None
            assert (
                list(layer.rows) == tensor.codebook.rows.tolist() == measured_rows(measure(state[name]).channel_scales).tolist()
            )
            assert tensor.values().tobytes() == fake_quantize(state[name], layer).tobytes()
    assert opq.compress(state, opq.Plan.from_json(compressed.plan.to_json())).data == compressed.data


@pytest.mark.parametrize("rounding", ["compensated", "deadzone"])
@pytest.mark.parametrize("ratio", [5, 12])
def test_a_plan_with_scales_predicts_the_size_of_its_file(network, rounding, ratio):
    """The predicted bytes, scales included, are within 2.5% of the real ones, even for few weights whose rows differ widely."""
    state = uneven(network)
    plan = opq.plan(state, ratio=ratio, scales="rows", rounding=rounding)
    assert plan.predicted_bytes == pytest.approx(len(opq.compress(state, plan).data), rel=0.025)


@pytest.mark.parametrize("rounding", ["compensated", "deadzone"])
@given(st.integers(0, 99), st.lists(st.integers(-4, 4), min_size=6, max_size=6))
@examples(20)
def test_rows_of_other_magnitudes_have_the_same_codes(rounding, seed, octaves):
    """If rows are multiplied by powers of two whose product is 1, their scales rise by as much, and the codes are the same."""
    weight = np.random.default_rng(seed).laplace(size=(12, 40)).astype(np.float32)
    moves = np.array([*octaves, *(-octave for octave in octaves)])
    moved = weight * np.exp2(moves).astype(np.float32)[:, None]
    one, other = (opq.plan({"w": w}, size=400, scales="rows", rounding=rounding) for w in (weight, moved))
    rows = [np.array(plan.layers["w"].rows or (0,) * 12) for plan in (one, other)]
    np.testing.assert_array_equal(rows[1] - rows[0], 8 * moves)
    same_step = replace(one, layers={"w": replace(one.layers["w"], rows=tuple(rows[1].tolist()))})
    files = opq.compress({"w": weight}, one).data, opq.compress({"w": moved}, same_step).data
    with opq.OpqFile(files[0]) as first, opq.OpqFile(files[1]) as second:
        np.testing.assert_array_equal(first["w"].codes, second["w"].codes)


def test_relative_errors_of_rows_count_alike(network):
    """With scales the error of a row is in proportion to its magnitude; without them it is the same for all rows."""
    state = uneven(network)
    spread = {}
    for scales in ("none", "rows"):
        back = opq.numpy.load(opq.compress(state, ratio=8, scales=scales, rounding="deadzone").data)
        for name in weights_of(state):
            rows = zip(state[name], back[name], strict=True)
            errors = [np.abs(found - row).mean() / np.abs(row).mean() for row, found in rows]
            spread[scales, name] = np.std(errors) / np.mean(errors)
    assert all(spread["rows", name] < 0.4 * spread["none", name] for name in weights_of(state))
    assert all(spread["rows", name] < 0.2 for name in weights_of(state))


def test_scales_are_chosen_for_single_weights(network):
    """A layer config decides for its weights, against the config; all others have one step."""
    state = uneven(network)
    chosen = opq.compress(state, ratio=8, layers={"fc.weight": opq.LayerConfig(scales="rows")})
    others = opq.compress(state, ratio=8, scales="rows", layers={"fc.weight": opq.LayerConfig(scales="none")})
    for compressed, expected in ((chosen, {"fc.weight"}), (others, {*weights_of(state)} - {"fc.weight"})):
        with opq.OpqFile(compressed.data) as file:
            assert {name for name in weights_of(state) if isinstance(file[name].codebook, ScaledCodebook)} == expected
        assert {name for name, layer in compressed.plan.layers.items() if layer.scaled_axes} == expected


def test_scales_that_are_all_zero_change_nothing():
    """If all rows have about the same magnitude, the file with scales is the file without."""
    rng = np.random.default_rng(0)
    state = {"a": rng.permuted(np.tile(rng.normal(size=200), (30, 1)), axis=1).astype(np.float32), "b": np.ones(30)}
    assert opq.compress(state, ratio=6, scales="rows").data == opq.compress(state, ratio=6).data
    assert opq.plan(state, ratio=6, scales="rows") == opq.plan(state, ratio=6)


def test_the_reports_show_scales(network):
    """`inspect` shows which weights have scales and their bytes, which add up with codes; the plan's table shows them too."""
    compressed = opq.compress(uneven(network), ratio=8, scales="rows")
    found = opq.inspect(compressed.data)
    with opq.OpqFile(compressed.data) as file:
        scales = sum(len(encode_scales(file[name].codebook)) for name in weights_of(network))
    assert found.bytes_by_kind["scales"] == scales > 0
    weights = [tensor for tensor in found.tensors if tensor.kind == "weight"]
    assert found.bytes_by_kind["codes"] + scales == sum(tensor.bytes for tensor in weights)
    assert {(tensor.storage, tensor.scaled_axes) for tensor in weights} == {("scaled", ("rows",))}
    for text in (found.table(every=True), str(compressed.plan)):
        assert text.count(" by rows") == len(weights)
    assert opq.compare(compressed.data).code_bytes == sum(tensor.bytes for tensor in weights)


@pytest.mark.parametrize("kind", sorted(dtypes.COMPRESSIBLE))
def test_every_dtype_has_scales(kind):
    """Weights of each dtype come back as fake_quantize, also with folded batch norms and auxiliary tensors of 8 bits."""
    rng = np.random.default_rng(1)
    state = uneven({"conv.weight": rng.laplace(size=(32, 8, 3, 3)), "fc.weight": rng.normal(size=(40, 50))})
    state |= {f"bn.{part}": rng.uniform(0.5, 1.5, 32) for part in ("weight", "bias", "running_mean", "running_var")}
    state = {name: array.astype(dtypes.NUMPY[kind]) for name, array in state.items()}
    compressed = opq.compress(state, ratio=4, scales="rows", batch_norm="folded", auxiliary="uint8")
    opq.verify(compressed.data)
    back = opq.numpy.load(compressed.data)
    for name in ("conv.weight", "fc.weight"):
        assert back[name].tobytes() == fake_quantize(state[name], compressed.plan.layers[name]).tobytes()


def test_tied_weights_with_scales_are_stored_once():
    """A weight under two names has one section; one with other row magnitudes has its own scales."""
    torch = pytest.importorskip("torch")
    base = torch.from_numpy(uneven({"w": np.random.default_rng(2).normal(size=(60, 50)).astype(np.float32)})["w"])
    data = opq.compress({"a": base, "b": base, "c": base * torch.linspace(0.1, 3.0, 60)[:, None]}, ratio=5, scales="rows").data
    with opq.OpqFile(data) as file:
        sections = {entry.name: entry.section for entry in file.entries}
        assert sections["a"] == sections["b"] != sections["c"]
        assert file["a"].values().tobytes() == file["b"].values().tobytes()


def test_a_large_weight_with_scales_is_read_by_rows(monkeypatch):
    """A weight that is quantized some rows at a time has the file of the whole weight."""
    weight = uneven({"w": np.random.default_rng(3).laplace(size=(90, 70)).astype(np.float32)})["w"]
    plan = opq.plan({"w": weight}, ratio=6, scales="rows")
    whole = opq.compress({"w": weight}, plan).data
    assert opq.numpy.load(whole)["w"].tobytes() == fake_quantize(weight, plan.layers["w"]).tobytes()
    monkeypatch.setattr("opq.compression.planned_weight.CHUNK", 1000)
    assert opq.compress({"w": weight}, plan).data == whole


def test_codes_with_scales_stay_codes():
    """Weights of a file, given as codes, keep codes and scales in a lossless file, and can be compressed again."""
    state = uneven({"w": np.random.default_rng(4).laplace(size=(90, 70)).astype(np.float32)})
    compressed = opq.compress(state, ratio=6, scales="rows")
    with opq.OpqFile(compressed.data) as file:
        again = opq.compress(file, lossless=True)
        assert opq.numpy.load(again.data)["w"].tobytes() == file.array("w").tobytes()
        assert opq.inspect(again.data).tensors[0].storage == "scaled"
        assert opq.compress(file, ratio=12, scales="rows").file_ratio >= 12


def test_scales_beyond_float32_are_refused():
    """Rows whose steps would leave the range of float32 are a WeightError that names the weight."""
    rng = np.random.default_rng(5)
    for octaves in ([135.0, 115.0], [-130.0, -110.0]):
        weight = rng.normal(size=(40, 40)) * np.exp2(np.resize(octaves, 40))[:, None]
        with pytest.raises(opq.WeightError, match=r"'w'.*beyond what a float32 step can quantize"):
            opq.compress({"w": weight}, ratio=9, scales="rows")


def test_the_curve_with_scales_is_what_plans_predict(network):
    """`rd_curve` with scales gives the bytes that plans with scales predict, and the error over the factors of rows."""
    state = uneven(network)
    (point,) = opq.rd_curve(state, ratios=[8.0], scales="rows", rounding="deadzone")
    assert point.ratio == pytest.approx(8.0, rel=0.01)
    plan = opq.plan(state, ratio=8.0, scales="rows", rounding="deadzone")
    assert point.bytes == pytest.approx(plan.predicted_bytes, rel=0.01)
    back = opq.numpy.load(opq.compress(state, plan).data)
    error = energy = 0.0
    for name in weights_of(state):
        factors = np.exp2(np.array(plan.layers[name].rows) / 8.0).reshape(-1, *(1,) * (state[name].ndim - 1))
        error += float(np.square((back[name] - state[name]) / factors).sum())
        energy += float(np.square(state[name] / factors).sum())
    assert point.distortion == pytest.approx(error / energy, rel=0.05)
