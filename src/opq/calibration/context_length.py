"""How many tokens a network takes at once."""

from __future__ import annotations

from torch import nn

_POSITIONS = ("wpe", "position_embeddings", "embed_positions", "pos_embedding")
"""Names of tables of positions in networks of transformers."""

_SETTING = "max_position_embeddings"
"""The name in configs of transformers, by which those with another name answer too."""


def context_length(model: nn.Module, most: int) -> int:
    """The number of tokens that a network takes, at least 1 and at most `most`.

    It is what the network's config says, less what a table of positions keeps for padding, as that of RoBERTa does.

    Args:
        model: The network.
        most: The number for a network that does not say it.
    """
    said = getattr(getattr(model, "config", None), _SETTING, None)
    length = min(said, most) if isinstance(said, int) and said > 0 else most
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in _POSITIONS and isinstance(module, nn.Embedding):
            kept = 0 if module.padding_idx is None else module.padding_idx + 1
            length = min(length, module.num_embeddings - kept)
    return max(length, 1)
