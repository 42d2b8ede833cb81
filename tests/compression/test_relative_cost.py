"""Byte targets that minimize relative errors of weights, and heads of language models that are embeddings too."""

import numpy as np
import pytest
from hypothesis import given
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


@given(scales)
def test_the_scale_of_a_weight_does_not_matter(scales):
    """Weights multiplied by powers of two have the same codes, so none becomes zero beside larger ones."""
    first, second = (opq.compress(network(some), ratio=6, cost="relative") for some in ([1.0] * 3, scales))
    codes = [dict(opq.OpqFile(compressed.data).weights()) for compressed in (first, second)]
    assert all((codes[0][name].codes == codes[1][name].codes).all() for name in SHAPES)
    assert all(weight.num_kept for weight in codes[1].values())


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
        ({"model.embed_tokens.weight": (100, 64)}, {}, (), False),
    ],
)
def test_embeddings_that_are_heads_are_found(shapes, repeats, others, found):
    """A token embedding is a head if it is tied, or if a network with a head has no other matrix with a row per token."""
    heads = tied_heads(shapes, repeats, frozenset({*shapes, *others}))
    assert heads == ({name for name, shape in shapes.items() if shape == EMBEDDING} if found else set())


def test_a_tied_head_has_a_finer_step():
    """Its relative error counts half as much as those of all weights together, at least as much as one."""
    rng = np.random.default_rng(0)
    state = {f"model.layers.{number}.weight": rng.normal(size=(64, 64)).astype(np.float32) for number in range(19)}
    state["model.embed_tokens.weight"] = rng.normal(size=(1024, 64)).astype(np.float32)
    plan = opq.plan(state, ratio=8, cost="relative")
    units = {name: plan.layers[name].step / (np.abs(weight).mean() * weight.size**0.5) for name, weight in state.items()}
    assert units["model.embed_tokens.weight"] * 10**0.5 == pytest.approx(units["model.layers.0.weight"], rel=1e-4)
