"""What all networks of this benchmark have in common: weights that can be exchanged, and a measure of quality."""

from __future__ import annotations

import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from harness import ROOT
from images import cache_folder
from torch import Tensor, nn

from opq.checkpoints import State

PACKAGES = ROOT / ".zoo-packages"
"""The folder of requirements/zoo.lock, which `make zoo-packages` installs."""


@dataclass(frozen=True)
class Measurement:
    """The quality of a network with some weights.

    Args:
        value: The measure, in the unit that the network's `measure_name` says.
        standard_error: Its standard error, from the scores of single inputs.
        change: `value` minus that of the dense network, on the same inputs.
        change_error: The standard error of `change`, from the paired scores. It is smaller than that of `value`.
        divergence: Mean Kullback-Leibler divergence of the outputs from the dense network's, in nats; None if the outputs are
            not distributions of few classes. It shows differences that are too small to change a decision.
    """

    value: float
    standard_error: float
    change: float
    change_error: float
    divergence: float | None = None


class Network(ABC):
    """A pretrained network, its inputs, and its measure.

    Args:
        module: The dense network in float32.
        batches: Its inputs. `run` gets one of them at a time.

    Attributes:
        name: As in `NETWORKS`.
        kind: What it is, in words.
        measure_name: The measure and its unit.
        higher_is_better: Whether a higher measure is better.
        module: The network, in eval mode. Its state dict is what is compressed.
        checkpoint: What opq is given in place of the state dict, if there is something.
    """

    name: str
    kind: str
    measure_name: str
    higher_is_better = True
    checkpoint: State | None = None

    def __init__(self, module: nn.Module, batches: Sequence[Tensor]) -> None:
        self.module = module.float().eval().requires_grad_(False)
        self.batches = batches
        self._dense = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}

    @abstractmethod
    def run(self, batch: Tensor) -> Tensor:
        """What `module` computes for a batch, (inputs, ...)."""

    @abstractmethod
    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """The score of each input, (inputs,): of all outputs, and those of the dense network. The measure is their mean."""

    def summarize(self, mean: float) -> float:
        """The measure of a mean score."""
        return mean

    def divergence(self, outputs: Tensor, dense: Tensor) -> float | None:
        """As in `Measurement`."""
        return None

    def source(self) -> Mapping[str, Tensor]:
        """The dense state dict; tied tensors share their memory, as in the module."""
        return self.module.state_dict()

    def measure(self, state: Mapping[str, Tensor] | None = None) -> float:
        """The measure with these weights, by default the dense ones. The module has its dense weights again afterwards."""
        return self.assess(state).value

    def standard_error(self, state: Mapping[str, Tensor] | None = None) -> float:
        """The standard error of `measure`."""
        return self.assess(state).standard_error

    def assess(self, state: Mapping[str, Tensor] | None = None) -> Measurement:
        """The measure, as `measure`, with its standard error, and the change from the dense network."""
        dense = self._dense_outputs
        outputs = dense if state is None else self._outputs_with(state)
        scores, before = self.scores(outputs, dense).double(), self.scores(dense, dense).double()
        value, dense_value = self.summarize(scores.mean().item()), self.summarize(before.mean().item())
        slope = self._slope(scores.mean().item())
        return Measurement(
            value,
            slope * _error_of_mean(scores),
            value - dense_value,
            slope * _error_of_mean(scores - before),
            self.divergence(outputs, dense),
        )

    @cached_property
    def _dense_outputs(self) -> Tensor:
        """Outputs of the dense network, kept in the cache folder under a digest of weights and inputs."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in (*self._dense.values(), *self.batches):
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        path = cache_folder() / f"zoo_{self.name}_{digest.hexdigest()}.pt"
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}.pt")
            torch.save(self._outputs_with(self._dense), temporary)
            temporary.replace(path)
        outputs: Tensor = torch.load(path, weights_only=True)
        return outputs

    @torch.inference_mode()
    def _outputs_with(self, state: Mapping[str, Tensor]) -> Tensor:
        try:
            self.module.load_state_dict(state)
            return torch.cat([self.run(batch) for batch in self.batches])
        finally:
            self.module.load_state_dict(self._dense)

    def _slope(self, mean: float) -> float:
        """The derivative of `summarize`, by which standard errors scale."""
        return abs(self.summarize(mean + 1e-4) - self.summarize(mean - 1e-4)) / 2e-4


def package_file(relative: str) -> Path:
    """A file of the packages of requirements/zoo.lock, whose folder is importable afterwards. Exits 1 if it is missing."""
    path = PACKAGES / relative
    if not path.exists():
        print(f"zoo_networks: {relative} is not in .zoo-packages; run: make zoo-packages", file=sys.stderr)
        raise SystemExit(1)
    if str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
    return path


def _error_of_mean(scores: Tensor) -> float:
    return scores.std().item() / len(scores) ** 0.5
