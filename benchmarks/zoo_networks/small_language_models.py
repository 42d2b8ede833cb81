"""The small language models that `train_small` trains."""

from __future__ import annotations

from zoo_networks.language_model import LanguageModel, held_out
from zoo_networks.train_small import ids_of, trained


def gpt5m() -> LanguageModel:
    """A GPT of 5 layers, its head tied to its embedding."""
    return _network("gpt5m", 64, 256)


def lstm() -> LanguageModel:
    """An LSTM of 2 layers on bytes."""
    return _network("lstm", 64, 1024)


def _network(name: str, texts: int, length: int) -> LanguageModel:
    return LanguageModel(name, trained(name), held_out(lambda text: ids_of(name, text), texts, length, 8))
