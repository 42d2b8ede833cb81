"""Scales of rows that nobody asked for: token embeddings and recurrent weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thoroughness import examples

import opq
from opq.compression.row_scales import row_power
from opq.rate_distortion.scales import measured_rows


@pytest.mark.parametrize(
    ("name", "shape", "power"),
    [
        ("model.embed_tokens.weight", (1000, 64), 1.0),
        ("transformer.wte.weight", (50257, 768), 1.0),
        ("embeddings.word_embeddings.weight", (30522, 384), 1.0),
        ("embedding.weight", (32000, 256), 1.0),
        ("tokens.weight", (4096, 256), 1.0),
        ("token_embd.weight", (32000, 64), 1.0),
        ("shared.weight", (32128, 512), 1.0),
        ("embed_tokens.weight", (999, 64), 0.0),
        ("embed_tokens.weight", (1500, 1000), 0.0),
        ("embed.weight", (2000, 4, 4), 0.0),
        ("classifier.weight", (5000, 64), 0.0),
        ("fc.weight", (5000, 64), 0.0),
        ("patch_embed.proj.weight", (4000, 48), 0.0),
        ("lstm.weight_ih_l0", (1024, 40), 0.5),
        ("lstm.weight_hh_l1_reverse", (1024, 256), 0.5),
        ("cell.weight_hh", (64, 16), 0.5),
        ("lstm.bias_hh_l0", (1024,), 0.0),
        ("lstm.weight_hr_l0", (64, 256), 0.0),
        ("features.0.weight", (64, 3, 3, 3), 0.0),
    ],
)
def test_names_and_shapes_decide(name, shape, power):
    """Steps follow the rows of a matrix with a row per token, and half as much, in octaves, those of a recurrent weight."""
    assert row_power(name, shape) == power


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0]))
@examples(50)
def test_scales_follow_a_power_of_the_magnitudes(seed, power):
    """Two rows whose magnitudes differ by k octaves have scales that differ by 8 k power, up to rounding; zero rows have 0."""
    magnitudes = np.exp2(np.random.default_rng(seed).uniform(-6.0, 6.0, 20))
    magnitudes[3] = 0.0
    found = measured_rows(magnitudes, power).astype(float)
    alive = magnitudes > 0.0
    difference = found[alive][:, None] - found[alive][None, :]
    octaves = np.log2(magnitudes[alive])
    assert found[3] == 0.0
    assert (np.abs(difference - 8.0 * power * (octaves[:, None] - octaves[None, :])) <= 1.0 + 1e-9).all()


def network():
    rng = np.random.default_rng(0)
    rows = np.exp2(rng.uniform(-2.0, 2.0, 1200))[:, None]
    return {
        "embed_tokens.weight": (rng.normal(size=(1200, 16)) * rows).astype(np.float32),
        "lstm.weight_hh_l0": (rng.normal(size=(256, 64)) * rows[:256]).astype(np.float32),
        "fc.weight": (rng.normal(size=(256, 64)) * rows[:256]).astype(np.float32),
    }


def scaled(plan):
    return {name for name, layer in plan.layers.items() if layer.rows is not None}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"ratio": 8}, {"embed_tokens.weight", "lstm.weight_hh_l0"}),
        ({"ratio": 8, "scales": "none"}, set()),
        ({"ratio": 8, "scales": "rows"}, set(network())),
        ({"ratio": 8, "rounding": "deadzone"}, set()),
        ({"ratio": 8, "rounding": "deadzone", "layers": {"*": opq.LayerConfig(scales="auto")}}, set()),
        ({"sparsity": 0.5, "bits": 4}, set()),
        ({"sparsity": 0.5, "bits": 4, "scales": "none"}, set()),
        ({"ratio": 8, "layers": {"embed*": opq.LayerConfig(step=0.1)}}, {"lstm.weight_hh_l0"}),
        (
            {"ratio": 8, "layers": {"embed*": opq.LayerConfig(step=0.1, scales="rows")}},
            {"embed_tokens.weight", "lstm.weight_hh_l0"},
        ),
        ({"ratio": 8, "layers": {"lstm*": opq.LayerConfig(scales="none")}}, {"embed_tokens.weight"}),
        (
            {"ratio": 8, "scales": "none", "layers": {"*": opq.LayerConfig(scales="auto")}},
            {"embed_tokens.weight", "lstm.weight_hh_l0"},
        ),
    ],
)
def test_settings_decide(options, found):
    """Only compensated rounding scales rows unasked, and not those of a weight whose step, bits or sparsity is fixed."""
    assert scaled(opq.plan(network(), **options)) == found


def test_tied_weights_have_the_same_scales():
    """A head that is the embedding has the embedding's rows under its own name, so both are stored once."""
    state = network()
    both = {**state, "a_head.weight": state["embed_tokens.weight"].copy()}
    compressed = opq.compress(both, size=len(opq.compress(state, ratio=8).data))
    layers = compressed.plan.layers
    assert layers["a_head.weight"] == layers["embed_tokens.weight"]
    assert layers["a_head.weight"].rows is not None
    with opq.OpqFile(compressed.data) as file:
        sections = {entry.name: entry.section for entry in file.entries}
    assert sections["a_head.weight"] == sections["embed_tokens.weight"]


def test_empty_rows_do_not_vanish():
    """Rows of small magnitude keep codes that are not zero, although the step of a middle row would empty them."""
    state = network()
    state["embed_tokens.weight"][:600] *= 2.0**-8
    weights = {
        scales: dict(opq.OpqFile(opq.compress(state, ratio=9, scales=scales).data).weights()) for scales in ("auto", "none")
    }
    kept = {scales: np.count_nonzero(found["embed_tokens.weight"].codes[:600]) for scales, found in weights.items()}
    assert kept["none"] == 0
    assert kept["auto"] > 1000
