"""The figures that README.md promises, each as stated there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from thoroughness import examples

import opq
import opq.numpy
from opq.compression.rd_curve import RATIOS


def dense_bytes(state):
    return sum(array.nbytes for array in state.values())


@pytest.mark.parametrize("rounding", ["compensated", "deadzone"])
@pytest.mark.parametrize("ratio", [3, 7, 10, 20])
def test_a_target_is_met_within_half_a_percent(network, ratio, rounding):
    """The whole file takes at most the bytes of the target, and at least 99.5% of them."""
    compressed = opq.compress(network, ratio=ratio, rounding=rounding)
    assert 0.995 <= len(compressed.data) * ratio / dense_bytes(network) <= 1.0


@pytest.mark.slow
@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 5.0), st.sampled_from(["exact", "float16", "uint8"]))
def test_a_size_is_met_within_half_a_percent(seed, bits, auxiliary):
    """From ten thousand weights on, the size is met for any shapes, densities and auxiliary storage."""
    rng = np.random.default_rng(seed)
    state = {}
    for number in range(rng.integers(1, 5)):
        shape = tuple(rng.integers(10, 40, rng.integers(2, 4)))
        weight = rng.choice([rng.laplace, rng.normal])(size=shape) * 10.0 ** rng.uniform(-2, 0)
        state[f"w{number}"] = weight.astype(np.float32)
        state[f"b{number}.bias"] = rng.normal(size=shape[0]).astype(np.float32)
    count = sum(array.size for array in state.values())
    assume(count > 10_000)
    size = int(count * bits / 8) + dense_bytes(state) // 50 + 1000
    assert 0.995 * size <= opq.compress(state, size=size, auxiliary=auxiliary).file_bytes <= size


@given(st.integers(0, 2**32 - 1), st.sampled_from(["float32", "float64"]), st.integers(1, 60))
@examples(60)
def test_float16_has_a_relative_error_of_at_most_2_to_the_minus_11(seed, kind, size):
    """A tensor with a value that exceeds the error of float16 is stored bit for bit. In a tensor with negative values an error
    of 2^-16 of its root mean square is allowed, too.
    """
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-7.0, 7.0, 6)
    vectors = {f"{at}.bias": (rng.normal(size=size) * factor).astype(kind) for at, factor in enumerate(scale)}
    vectors = {name: np.abs(vector) if name < "3" else vector for name, vector in vectors.items()}
    back = opq.numpy.load(opq.numpy.save({"w": rng.normal(size=(40, 40)), **vectors}, ratio=4, auxiliary="float16"))
    for name, vector in vectors.items():
        exact = back[name].tobytes() == vector.tobytes()
        root = np.sqrt(np.square(vector.astype(np.float64)).mean()) if (vector < 0).any() else 0.0
        allowed = np.maximum(2.0**-11 * np.abs(vector), 2.0**-16 * root)
        assert exact or (np.abs(back[name] - vector) <= allowed).all()
        fits = (np.abs(vector) >= 2.0**-14).all() or root >= 2.0**-9
        assert exact or (fits and (np.abs(vector) <= 65504.0).all())
        assert not exact or size == 1 or not (fits and (np.abs(vector) <= 65504.0).all())


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.sampled_from(["float32", "float64"]), st.integers(1, 80))
@examples(60)
def test_eight_bits_have_the_documented_error(seed, kind, size):
    """The error of a vector of no batch norm is 2^-8 of its median magnitude, or 2^-9 of each value if none is negative; other
    vectors are stored as float16.
    """
    rng = np.random.default_rng(seed)
    octaves = rng.uniform(0.0, 3.0)
    vectors = {
        "negative": rng.uniform(-1.5, -1.0, size),
        "both signs": np.append(rng.normal(size=size), -3.0),
        "outlying": np.append(rng.normal(size=size), 500.0),
        "positive": 2.0 ** rng.uniform(-octaves / 2.0, octaves / 2.0, size),
        "some zeros": rng.uniform(0.8, 1.4, size) * (rng.random(size) < 0.7),
    }
    vectors = {f"{name}.bias": vector.astype(kind) for name, vector in vectors.items()}
    data = opq.numpy.save({"w": rng.normal(size=(40, 40)), **vectors}, ratio=4, auxiliary="uint8")
    back, declared = opq.numpy.load(data), {tensor.name: tensor for tensor in opq.inspect(data).tensors}
    for name, vector in vectors.items():
        error, magnitude = np.abs(back[name].astype(float) - vector), np.abs(vector.astype(float))
        if declared[name].storage in ("linear8", "relative8"):
            assert vector.size >= 16
            bound = 2.0**-8 * np.median(magnitude[magnitude > 0]) if vector.min() < 0 else 2.0**-9 * magnitude
        else:
            bound = np.maximum(2.0**-11 * magnitude, 2.0**-25)
        assert (error <= bound).all()
        stated = np.maximum(declared[name].absolute_error, declared[name].relative_error * magnitude)
        assert (error <= stated).all()  # as inspect states it
    if size >= 40:
        stored = {name.removesuffix(".bias"): declared[name].storage for name in vectors}
        assert stored["negative"] == "linear8"
        assert stored["some zeros"] == "relative8"
        assert stored["both signs"] == stored["outlying"] == "float16"
        assert (stored["positive"] == "relative8") == (octaves < 1.0) or 0.9 < octaves < 2.0


def test_the_curve_has_eleven_ratios_from_4_to_50():
    """The default ratios are those of `opq plan --curve`."""
    state = {"w": np.random.default_rng(0).laplace(size=(300, 300)).astype(np.float32)}
    assert (len(RATIOS), RATIOS[0], RATIOS[-1]) == (11, 4.0, 50.0)
    found = [point.ratio for point in opq.rd_curve(state)]
    assert found == pytest.approx(RATIOS, rel=0.01)


def test_the_file_ratio_counts_all_bytes_and_the_nominal_ratio_codes_only(network):
    """File ratio: dense bytes over file bytes. Nominal ratio: 32 / (density x bits), with ceil(log2(2 m)) bits per code.

    m is the largest code of the channel.
    """
    compressed = opq.compress(network, ratio=10)
    found = opq.inspect(compressed.data)
    assert found.file_ratio == pytest.approx(dense_bytes(network) / len(compressed.data))
    bits = weights = 0
    with opq.OpqFile(compressed.data) as file:
        for name in compressed.plan.layers:
            rows = np.abs(file[name].codes).reshape(len(file[name].codes), -1)
            weights += rows.size
            bits += sum(np.count_nonzero(row) * np.ceil(np.log2(2.0 * row.max())) for row in rows if row.any())
    assert found.nominal_ratio == pytest.approx(32.0 * weights / bits)
