"""Networks that classify images, and their top-1 accuracy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import checkpoints, load
from networks.makers import MAKERS
from torch import Tensor, nn
from torch.nn import functional

from zoo_networks.network import Network

BATCH = 25
"""Images at a time: larger batches of large images do not fit the processor's caches."""


class ImageClassifier(Network):
    """A module that maps images to logits.

    Args:
        name: As in `NETWORKS`.
        module: The network.
        images: uint8 (n, height, width, 3).
        labels: int64 (n,).
        preprocess: uint8 images to the network's input.
    """

    kind = "image classifier"
    measure_name = "top-1, %"

    def __init__(
        self, name: str, module: nn.Module, images: Tensor, labels: Tensor, preprocess: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(module, images.split(BATCH))
        self.name, self.labels, self.preprocess = name, labels, preprocess

    def run(self, batch: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.module(self.preprocess(batch).to(memory_format=torch.channels_last))
        return logits

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """100 if the largest logit is that of the label, otherwise 0."""
        return 100.0 * (outputs.argmax(1) == self.labels)

    def divergence(self, outputs: Tensor, dense: Tensor) -> float:
        """Mean over images."""
        log_p, log_q = (functional.log_softmax(logits.double(), 1) for logits in (dense, outputs))
        return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True).item()


def checkpoint_module(name: str) -> nn.Module:
    """The network of a checkpoint of the data folder, with its weights."""
    module = MAKERS[name]()
    tensors = {key: torch.from_numpy(value) for key, value in load(checkpoints()[name]).items()}
    module.load_state_dict(tensors, strict=False)
    return module
