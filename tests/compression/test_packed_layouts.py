"""Checkpoints that are quantized already: packed codes are refused with a target, and come back bit for bit without one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import opq
import opq.numpy
from opq.cli import main

RNG = np.random.default_rng(0)
PACKED = [
    ("GPTQ or AWQ", {"l.qweight": "int32", "l.qzeros": "int32", "l.scales": "float16", "l.g_idx": "int32"}),
    ("compressed-tensors", {"l.weight_packed": "int32", "l.weight_scale": "bfloat16", "l.weight_shape": "int64"}),
    ("bitsandbytes, 8 bits", {"l.weight": "int8", "l.SCB": "float32"}),
    ("bitsandbytes, 4 bits", {"l.weight": "uint8", "l.weight.absmax": "float32", "l.weight.quant_map": "float32"}),
    ("torchao", {"l.weight:qdata": "uint8", "l.weight:scale": "float16"}),
    ("torchao", {"l._weight_qdata": "int8", "l._weight_scale": "float32"}),
    ("MXFP4", {"l.up_proj_blocks": "uint8", "l.up_proj_scales": "uint8"}),
    ("GPTQ or AWQ", {"qweight": "int32", "qzeros": "int32", "scales": "float16"}),
]
PLAIN = [
    {"l.qweight": "int8", "l.scales": "float16"},
    {"l.weight": "float8_e4m3fn", "l.weight_scale_inv": "float32"},
    {"l.weight": "int8", "l.weight_scale": "float32"},
    {"l.weight": "float8_e5m2", "l.SCB": "float32"},
    {"l.weight:qdata": "float8_e4m3fn", "l.weight:scale": "float32"},
    {"l.myqweight": "int32", "l.myqzeros": "int32", "l.myscales": "float16"},
    {"l.weight": "float32", "l.weight.absmax": "float32", "l.weight.quant_map": "float32"},
]


def checkpoint(kinds):
    """Tensors of 16 x 16 with these dtypes, and a weight of its own."""
    state = {name: RNG.integers(0, 100, (16, 16)).astype(getattr(ml_dtypes, kind, kind)) for name, kind in kinds.items()}
    return {**state, "embed.weight": RNG.normal(size=(128, 64)).astype(np.float32)}


@pytest.mark.parametrize(("quantizer", "kinds"), PACKED)
@pytest.mark.parametrize("target", [{"ratio": 2}, {"size": 9000}, {"sparsity": 0.5, "bits": 3}])
def test_packed_weights_are_refused(quantizer, kinds, target):
    """With any target, a plan and a file of a checkpoint with packed codes are errors that name the codes and what to do."""
    state = checkpoint(kinds)
    words = rf"tensor '{next(iter(kinds))}' \(16, 16\): it is quantized already \({quantizer}\); .*original weights.*--lossless"
    for make in (opq.plan, opq.compress):
        with pytest.raises(opq.WeightError, match=words):
            make(state, **target)
        with pytest.raises(opq.WeightError, match=words):
            make(state, exclude=["embed*"], **target)


@pytest.mark.parametrize(("quantizer", "kinds"), PACKED)
def test_chosen_weights_are_quantized(quantizer, kinds):
    """Weights that `include` chooses are quantized, and only those; lossless changes nothing at all."""
    state = checkpoint(kinds)
    found = opq.numpy.load(opq.compress(state, size=9000, include=["embed.*"]).data)
    assert [name for name in state if found[name].tobytes() != state[name].tobytes()] == ["embed.weight"]
    found = opq.numpy.load(opq.compress(state, lossless=True).data)
    assert all(found[name].tobytes() == state[name].tobytes() for name in state)


@pytest.mark.parametrize("kinds", PLAIN)
def test_plain_codes_are_accepted(kinds):
    """Codes that are not packed, and names that only look alike, are no reason to refuse a target."""
    assert "embed.weight" in opq.plan(checkpoint(kinds), size=9000).layers


def test_the_command_says_what_to_do(tmp_path, capsys):
    """The command line says it in one line, and --lossless works."""
    from safetensors.numpy import save_file

    state = checkpoint(PACKED[0][1])
    save_file(state, tmp_path / "m.safetensors")
    arguments = ["compress", f"{tmp_path}/m.safetensors", "-o", f"{tmp_path}/m.opq"]
    assert main([*arguments, "--ratio", "4"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*arguments, "--lossless"]) == 0
