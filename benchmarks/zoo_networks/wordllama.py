"""WordLlama (l2_supercat, 256 dimensions), from the package wordllama: vectors of tokens, averaged to that of a text."""

from __future__ import annotations

from collections import OrderedDict

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from zoo_networks.network import package_file
from zoo_networks.sentence_embedding import SentenceEmbedding

SENTENCES = 2000


def wordllama() -> SentenceEmbedding:
    """One embedding of 32,000 tokens, in float16 in the package."""
    weights = load_file(package_file("wordllama/weights/l2_supercat_256.safetensors"))
    module = nn.Sequential(OrderedDict(embedding=nn.Embedding(*weights["embedding.weight"].shape)))
    module.load_state_dict(weights)
    tokenizer = Tokenizer.from_file(str(package_file("wordllama/tokenizers/l2_supercat_tokenizer_config.json")))
    tokenizer.no_padding()
    return SentenceEmbedding("wordllama", "static embedding", module, tokenizer, SENTENCES)
