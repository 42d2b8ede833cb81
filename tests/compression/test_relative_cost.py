"""Byte targets that minimize relative errors of weights, and heads of language models that are embeddings too."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opq
from opq.compression.tied_head import tied_heads

SHAPES = {"a": (24, 40), "b": (8, 6, 3, 3), "c": (120, 64)}


def network(scales):
    rng = np.random.default_rng(0)
    return {
        name: (scale * rng.laplace(size=shape)).astype(np.float32)
        for (name, shape), scale in zip(SHAPES.items(), scales, strict=True)
    }


scales = st.lists(st.integers(-12, 12).map(lambda power: 2.0**power), min_size=3, max_size=3)


@given(scales, st.sampled_from([0.25, 1.0, 4.0]), st.sampled_from([3.0, 6.0, 10.0]))
def test_steps_follow_scale_and_size(scales, sensitivity, ratio):
    """A step is proportional to the weight's mean magnitude and to the root of its size over its sensitivity."""
    state = network(scales)
    layers = {"b": opq.LayerConfig(sensitivity=sensitivity)}
    plan = opq.plan(state, ratio=ratio, cost="relative", layers=layers)
    units = {name: plan.layers[name].step / (float(np.abs(weight).mean()) * weight.size**0.5) for name, weight in state.items()}
    assert units["a"] == pytest.approx(units["c"], rel=1e-4)
    assert units["b"] * sensitivity**0.5 == pytest.approx(units["c"], rel=1e-4)


@cache
def reference():
    """The weights of a file of the network whose weights have scale 1."""
    return dict(opq.OpqFile(opq.compress(network([1.0] * 3), ratio=6, cost="relative").data).weights())


@given(scales)
@settings(max_examples=25)
def test_the_scale_of_a_weight_does_not_matter(scales):
    """Weights multiplied by powers of two have the same codes, so none becomes zero beside larger ones."""
    found = dict(opq.OpqFile(opq.compress(network(scales), ratio=6, cost="relative").data).weights())
    assert all((found[name].codes == reference()[name].codes).all() for name in SHAPES)
    assert all(weight.num_kept for weight in found.values())


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
    """Its relative error counts half as much as those of all different weights together, at least as much as one."""
    rng = np.random.default_rng(0)
    state = {f"layers.{number}.weight": rng.normal(size=(64, 64)).astype(np.float32) for number in range(layers)}
    embedding = rng.normal(size=(1024, 64)).astype(np.float32)
    plan = opq.plan(
        {**state, **dict.fromkeys(names, embedding), **{name: np.ones(7, np.float32) for name in others}},
        ratio=6,
        cost="relative",
    )
    units = [
        plan.layers[name].step / (np.abs(weight).mean() * weight.size**0.5)
        for name, weight in (("layers.0.weight", state["layers.0.weight"]), (names[0], embedding))
    ]
    assert (units[0] / units[1]) ** 2 == pytest.approx(factor, rel=1e-3)
