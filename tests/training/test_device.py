"""Where a network runs, and in which precision."""

import pytest
import torch

from opq.training.device import prefers_bfloat16


@pytest.mark.parametrize(
    ("found", "pays"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "avx512_fp16": True}, True),
        ({"avx512_bf16": True}, True),
        ({"avx512_bf16": True, "avx512_fp16": True}, False),
        ({"avx512_f": True}, False),
        ({}, False),
    ],
    ids=["AMX", "Zen", "AMX hidden", "older", "none"],
)
def test_bfloat16_where_it_is_faster(monkeypatch, found, pays):
    """With AMX, and with AVX512-BF16 on processors that are not made for AMX."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert prefers_bfloat16(torch.device("cpu")) is pays
