"""A network whose weights are in their codebooks: prepare it, train it with any loop, export its file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Unpack

import torch
from torch import nn

from opq import torch as save_load
from opq.checkpoints.open import epsilons_of
from opq.checkpoints.state import TensorState
from opq.codec.auxiliary import asked_storage
from opq.codec.file_reader import OpqFile
from opq.compression.analysis import shared_eps
from opq.compression.compressed_model import CompressedModel, encode_state
from opq.compression.planning import plan as make_plan
from opq.config import CompressionConfig, CompressionOptions, as_config
from opq.errors import PlanError, SourceError, WeightError
from opq.quantization.codebook import UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.rate_distortion.plan import AuxiliaryPlan, Plan
from opq.training.attach import PreparedWeight, attach, detach, find_tensor, plain_state_dict, prepared_weights
from opq.training.batches import Loader
from opq.training.bn_statistics import has_folded_statistics
from opq.training.budget.code_reduction import CodeReduction, reduced_to_budget, section_bytes
from opq.training.parametrization import CodebookParametrization

Start = CompressionConfig | Plan | OpqFile | str | os.PathLike[str] | bytes
"""What a network is prepared with: a config or a plan; or a .opq file, open, by path or as bytes."""


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A network whose weights are in their codebooks, whatever an optimizer does to them.

    Args:
        model: The network, prepared in place.
        plan: The plan of its masks and steps; None if they come from a file.
        auxiliary: How tensors that are not weights are stored.
        budget: The most bytes that the file may have; None for any.
        metadata: {text: text} to keep in the file.
    """

    model: nn.Module
    plan: Plan | None
    auxiliary: AuxiliaryPlan
    budget: int | None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> list[PreparedWeight]:
        """The weights with codebooks, each once, in order of their first names."""
        return prepared_weights(self.model)

    def code_bytes(self) -> int:
        """Bytes that the codes of all weights take in the file now."""
        return section_bytes([weight.tensor().codes for weight in self.weights])

    def encode(self) -> CompressedModel:
        """The file as the network is now, whatever its size.

        Raises:
            WeightError: A weight holds NaN or infinite values.
        """
        weights = {name: tensor for weight in self.weights for tensor in [weight.tensor()] for name in weight.names}
        state = TensorState(plain_state_dict(self.model), self.metadata, epsilons_of(self.model))
        return encode_state(state, weights, self.auxiliary, plan=self.plan)

    def export(self, loader: Loader | None = None) -> CompressedModel:
        """The file of the network, within the budget. The network stays prepared and unchanged.

        If the file is too large, codes of 2 and more are lowered, those first that save most bits for their error.

        Args:
            loader: Batches from which batch-norm statistics are estimated anew if codes were lowered; None to keep them.

        Raises:
            TargetError: The codes cannot be brought into the budget.
            WeightError: A weight holds NaN or infinite values.
        """
        return self.export_with_report(loader)[0]

    def export_with_report(self, loader: Loader | None = None) -> tuple[CompressedModel, int, CodeReduction]:
        """As `export`; also the bytes before any code was lowered, and how many codes were."""
        return reduced_to_budget(self.model, self.encode, self.budget, loader)

    def convert(self) -> nn.Module:
        """Make the weights plain parameters again, with the values they round to, and return the network.

        Raises:
            WeightError: A weight holds NaN or infinite values; the network stays prepared.
        """
        weights = self.weights
        values = {id(weight.latent): weight.value() for weight in weights}
        with torch.no_grad():
            for weight in weights:
                weight.latent.copy_(values[id(weight.latent)])
        detach(self.model, weights)
        return self.model

    def __repr__(self) -> str:
        """Sizes; the network itself is too much to print."""
        budget = "any size" if self.budget is None else f"at most {self.budget:,} bytes"
        return f"<PreparedModel: {len(self.weights)} weights in codebooks, for a file of {budget}>"


def prepare(
    model: nn.Module,
    start: Start | None = None,
    *,
    budget: int | None = None,
    metadata: Mapping[str, str] | None = None,
    **options: Unpack[CompressionOptions],
) -> PreparedModel:
    """Attach masks and steps to the weights of `model`, in place: from now on they are always in their codebooks.

    Any optimizer of the network's parameters and any training loop stay as they are.

    Args:
        model: The network.
        start: A config, or a plan, whose masks are taken from the weights as they are now; or a .opq file, whose tensors are
            loaded into the network and whose masks and steps are kept; or None, then `options` say what to do.
        budget: The most bytes that the exported file may have; by default what the target asks for, or the size of the file.
        metadata: {text: text} to keep in the exported file.
        options: The fields of a config as keywords.

    Raises:
        PlanError: The plan was not made for this network, or the network is prepared already.
        SourceError, FormatError: The file cannot be read, or is of another network.
        TargetError, ConfigError, SelectionError, WeightError: See `opq.plan`.
    """
    if prepared_weights(model):
        raise PlanError("the network is prepared already; call convert() on what opq.prepare returned")
    if start is not None and options:
        raise TypeError(f"prepare() takes a start or keywords, got both a start and {min(options)!r}")
    metadata = metadata or {}
    if start is None or isinstance(start, CompressionConfig):
        start = make_plan(model, as_config(start, options, "prepare"))
    if isinstance(start, Plan):
        makers = {name: partial(CodebookParametrization.from_plan, name, plan=layer) for name, layer in start.layers.items()}
        attach(model, makers)
        return PreparedModel(model, start, start.auxiliary, start.budget if budget is None else budget, metadata)
    if isinstance(start, OpqFile):
        return _from_file(model, start, budget, metadata)
    with OpqFile(start) as file:
        return _from_file(model, file, budget, metadata)


def _from_file(model: nn.Module, file: OpqFile, budget: int | None, metadata: Mapping[str, str]) -> PreparedModel:
    """Load the tensors of a file into `model`, and take its masks and steps."""
    contents = {name: file[name] for name in file}
    own = model.state_dict()
    for name in [*own, *contents]:
        if name not in own or name not in contents:
            raise SourceError("the file", f"it is not of this network: {name!r} is in only one of them")
        if tuple(own[name].shape) != contents[name].shape:
            raise SourceError("the file", f"{name!r} is {contents[name].shape} in it, {tuple(own[name].shape)} in the network")
    makers = {}
    for name, content in contents.items():
        if isinstance(content, CompressedTensor):
            find_tensor(model, name)
            if not isinstance(content.codebook, UniformCodebook):
                raise WeightError(
                    name, content.shape, "it has a table of levels, and training needs a step; compress it to a size"
                )
            makers[name] = partial(CodebookParametrization.from_file, tensor=content, codebook=content.codebook)
    model.load_state_dict({name: save_load.to_tensor(file.array(name)) for name in file})
    attach(model, makers)
    form = "folded" if any(has_folded_statistics(module) for module in model.modules()) else "keep"
    auxiliary = AuxiliaryPlan(asked_storage(file.entries), form, shared_eps(epsilons_of(model)))
    return PreparedModel(model, None, auxiliary, file.file_bytes if budget is None else budget, {**file.metadata, **metadata})
