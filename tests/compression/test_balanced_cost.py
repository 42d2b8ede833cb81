"""Byte targets with balanced costs of weights, and heads of language models that are embeddings too."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from thoroughness import examples

import opq
from opq.compression.tied_head import tied_heads

SHAPES = {"a": (24, 40), "b": (8, 6, 3, 3), "c": (120, 64)}


def network(scales):
    rng = np.random.default_rng(0)
    return {
        name: (scale * rng.laplace(size=shape)).astype(np.float32)
        for (name, shape), scale in zip(SHAPES.items(), scales, strict=True)
    }


def unit_steps(state):
    """The step of each weight, up to a common factor, by the documented formula: s sqrt(N / factor)."""
    scales = {name: float(np.abs(weight).mean(dtype=np.float64)) for name, weight in state.items()}
    middle = math.prod(scales.values()) ** (1.0 / len(scales))
    factors = {name: min(max((scale / middle) ** 0.5, 0.25), 4.0) for name, scale in scales.items()}
    return {name: scales[name] * (weight.size / factors[name]) ** 0.5 for name, weight in state.items()}


powers = st.integers(-12, 12).map(lambda power: 2.0**power)
three = st.lists(powers, min_size=3, max_size=3)


@given(three, st.sampled_from([0.25, 1.0, 4.0]), st.sampled_from([3.0, 6.0, 10.0]), st.booleans())
@example([2.0**-12, 1.0, 2.0**12], 1.0, 6.0, False)
def test_steps_follow_scale_and_size(scales, sensitivity, ratio, by_default):
    """A step is proportional to the weight's mean magnitude, to the root of its size over its sensitivity, and to the inverse
    root of the clipped power of its scale. Balanced costs are the default.
    """
    state = network(scales)
    layers = {"b": opq.LayerConfig(sensitivity=sensitivity)}
    options = {} if by_default else {"cost": "balanced"}
    plan = opq.plan(state, ratio=ratio, layers=layers, rounding="compensated", **options)
    found = {name: plan.layers[name].step / unit for name, unit in unit_steps(state).items()}
    assert found["a"] == pytest.approx(found["c"], rel=1e-4)
    assert found["b"] * sensitivity**0.5 == pytest.approx(found["c"], rel=1e-4)


def codes(state):
    """The codes of each weight of a file at a ratio of 6."""
    with opq.OpqFile(opq.compress(state, ratio=6).data) as file:
        return {name: file[name].codes for name in state}


@cache
def reference():
    """The codes of the network whose weights have the scales 1, 4 and 1/2."""
    return codes(network([1.0, 4.0, 0.5]))


@given(st.integers(-60, 60))
@examples(25)
def test_a_common_scale_does_not_matter(power):
    """A network whose weights are all multiplied by one power of two has the same codes."""
    found = codes(network([2.0**power, 2.0 ** (power + 2), 2.0 ** (power - 1)]))
    assert all((found[name] == reference()[name]).all() for name in SHAPES)


@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 12) | st.just(30))
@examples(25)
@example("c", 30)
def test_no_weight_vanishes_beside_larger_ones(name, power):
    """A weight that is far smaller than all others keeps non-zero codes: at least half as many as at a common scale."""
    found = codes(network([2.0**-power if other == name else 1.0 for other in SHAPES]))
    alike = codes(network([1.0] * 3))
    assert np.count_nonzero(found[name]) >= 0.5 * np.count_nonzero(alike[name]) > 0
    assert all(values.any() for values in found.values())


def test_weights_of_zeros_and_nearly_so_change_no_cost():
    """Weights that are zero, or below what float32 has steps for, leave the relative steps of the others as they are."""
    state = network([1.0, 2.0**6, 2.0**-3])
    tiny = np.random.default_rng(1).laplace(scale=1e-42, size=(30, 30)).astype(np.float32)
    plan = opq.plan({**state, "tiny": tiny, "zero": np.zeros_like(tiny)}, ratio=6, rounding="compensated")
    found = [plan.layers[name].step / unit for name, unit in unit_steps(state).items()]
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)
    assert plan.layers["tiny"].sparsity == 1.0


EMBEDDING, MATRIX = (32000, 64), (64, 64)


@pytest.mark.parametrize(
    ("shapes", "repeats", "others", "found"),
    [
        ({"embed.weight": EMBEDDING, "head.weight": EMBEDDING}, {"head.weight": "embed.weight"}, (), True),
        ({"model.embed_tokens.weight": EMBEDDING, "model.layers.0.q.weight": MATRIX}, {}, (), True),
        ({"transformer.wte.weight": EMBEDDING}, {}, (), True),
        ({"token_embd.weight": EMBEDDING}, {}, (), True),
        ({"bert.embeddings.word_embeddings.weight": EMBEDDING}, {}, ("cls.predictions.bias",), True),
        ({"model.embed_tokens.weight": EMBEDDING, "lm_head.weight": EMBEDDING}, {}, (), False),
        ({"token_embd.weight": EMBEDDING, "output.weight": EMBEDDING}, {}, (), False),
        ({"embeddings.word_embeddings.weight": EMBEDDING, "pooler.weight": MATRIX}, {}, (), False),
        ({"shared.weight": EMBEDDING}, {}, ("encoder.block.0.weight", "decoder.block.0.weight"), True),
        ({"shared.weight": EMBEDDING}, {}, ("encoder.block.0.weight",), False),
        (
            {"encoder.embed_tokens.weight": EMBEDDING, "shared.weight": EMBEDDING},
            {"shared.weight": "encoder.embed_tokens.weight"},
            ("encoder.block.0.weight",),
            False,
        ),
        ({"model.embed_tokens.weight": EMBEDDING}, {}, ("score.weight",), False),
        ({"model.embeddings.word_embeddings.weight": EMBEDDING}, {}, (), False),
        ({"embedding.weight": EMBEDDING}, {}, (), False),
        ({"model.fc.weight": EMBEDDING}, {}, (), False),
        ({"embed_tokens.weight": EMBEDDING}, {}, ("lm_head.bias",), True),
        ({"embed_tokens.weight": EMBEDDING}, {}, ("output_projection.bias",), True),
        ({"tok_embeddings.weight": EMBEDDING}, {}, ("embed_out.bias",), True),
        ({"model.embed_tokens.weight": (1000, 64)}, {}, (), True),
        ({"model.embed_tokens.weight": (999, 64)}, {}, (), False),
        ({"model.embed_tokens.weight": (1500, 1000)}, {}, (), False),
        ({"model.embed_tokens.weight": (32000, 8, 8)}, {}, (), False),
    ],
)
def test_embeddings_that_are_heads_are_found(shapes, repeats, others, found):
    """A token embedding is a head if it is tied, or if a network with a head has no other matrix with a row per token."""
    heads = tied_heads(shapes, repeats, frozenset({*shapes, *others}))
    assert heads == ({name for name, shape in shapes.items() if shape != MATRIX} if found else set())


@pytest.mark.parametrize(
    ("layers", "names", "others", "factor"),
    [
        (19, ["model.embed_tokens.weight"], [], 10),
        (18, ["embed.weight", "lm_head.weight"], [], 9.5),
        (19, ["bert.word_embeddings.weight"], ["cls.predictions.bias"], 10),
        (1, ["model.embed_tokens.weight"], [], 1),
    ],
)
def test_a_tied_head_has_a_finer_step(layers, names, others, factor):
    """Its error counts half as much as those of all different weights together, at least as much as one."""
    rng = np.random.default_rng(0)
    state = {f"layers.{number}.weight": rng.normal(size=(64, 64)).astype(np.float32) for number in range(layers)}
    embedding = rng.normal(size=(1024, 64)).astype(np.float32)
    network = {**state, **dict.fromkeys(names, embedding), **{name: np.ones(7, np.float32) for name in others}}
    plan = opq.plan(network, ratio=6, scales="none", rounding="compensated")
    units = unit_steps({**state, names[0]: embedding})
    found = [plan.layers[name].step / units[name] for name in ("layers.0.weight", names[0])]
    assert (found[0] / found[1]) ** 2 == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize("name", ["lstm.weight_ih_l0", "encoder.gru.weight_hh_l1_reverse", "cell.weight_hh"])
def test_a_recurrent_weight_has_a_finer_step(name):
    """Its error counts twice."""
    rng = np.random.default_rng(0)
    state = {f"layers.{number}.weight": rng.normal(size=(64, 64)).astype(np.float32) for number in range(5)}
    state[name] = rng.normal(size=(96, 32)).astype(np.float32)
    plan = opq.plan(state, ratio=6, scales="none", rounding="compensated")
    units = unit_steps(state)
    found = [plan.layers[layer].step / units[layer] for layer in ("layers.0.weight", name)]
    assert (found[0] / found[1]) ** 2 == pytest.approx(2.0, rel=1e-3)
