"""Eleven real networks of different kinds, each with a measure of what it is for.

`network = NETWORKS["resnet20"]()` loads one. `network.measure()` is that of the dense network, and
`network.measure(opq.torch.load(opq.compress(network.source(), ratio=8).data))` that of a compressed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zoo_networks.efficientnet_lite0 import efficientnet_lite0
from zoo_networks.fcpe import fcpe
from zoo_networks.minilm import minilm
from zoo_networks.mobilenet import mobilenet
from zoo_networks.network import Measurement, Network
from zoo_networks.resnet_cifar10 import resnet20, resnet56
from zoo_networks.silero_vad import silero_vad
from zoo_networks.small_language_models import gpt5m, lstm
from zoo_networks.smollm2 import smollm2
from zoo_networks.wordllama import wordllama

__all__ = ["NETWORKS", "Measurement", "Network"]

NETWORKS: Mapping[str, Callable[[], Network]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "mobilenet": mobilenet,
    "efficientnet_lite0": efficientnet_lite0,
    "minilm": minilm,
    "wordllama": wordllama,
    "silero_vad": silero_vad,
    "fcpe": fcpe,
    "smollm2": smollm2,
    "gpt5m": gpt5m,
    "lstm": lstm,
}
"""{name: function that loads it}. If packages, data or a training that it needs are missing, it exits 1 and says so."""
