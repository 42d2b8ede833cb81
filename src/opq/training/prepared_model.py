"""PreparedModel: a network whose weights stay in their codebooks. Prepare it, train it with any loop, export its file."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from opq import torch as save_load
from opq.calibration.calibrate import Calibration
from opq.checkpoints.open import as_state, epsilons_of, parameters_of
from opq.checkpoints.reparametrized_state import ReparametrizedState
from opq.checkpoints.state import TensorState
from opq.codec.auxiliary import requested_storage
from opq.codec.file_reader import OpqFile
from opq.compression.analysis import shared_eps
from opq.compression.compressed_model import CompressedModel, encode_state
from opq.config import CompressionConfig, CompressionOptions, as_config
from opq.errors import PlanError, SourceError, WeightError
from opq.progress import Progress, show_progress
from opq.quantization.codebook import ScaledCodebook, UniformCodebook
from opq.quantization.compressed_tensor import CompressedTensor
from opq.rate_distortion.plan import AuxiliaryPlan, Plan
from opq.training.attach import PreparedWeight, attach, detach, find_tensor, plain_state_dict, prepared_weights
from opq.training.batches import Loader
from opq.training.bn_statistics import has_folded_statistics
from opq.training.budget.code_reduction import CodeReduction, reduced_to_budget, section_bytes
from opq.training.budget.reserve import prune
from opq.training.config import RESERVE
from opq.training.half_precision import HALF, restore_dtypes
from opq.training.parametrization import CodebookParametrization
from opq.training.training_plan import byte_budget, calibrated_file, training_plan

Start = CompressionConfig | Plan | OpqFile | str | os.PathLike[str] | bytes
"""Where masks and steps come from: a config, a plan, or a .opq file (open, as a path or as bytes)."""


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A network whose weights stay in their codebooks, whatever an optimizer does; `opq.prepare` makes it.

    Args:
        model: The network, prepared in place.
        plan: The plan that gave masks and steps; None if they come from a file.
        auxiliary: How auxiliary tensors are stored.
        budget: Largest size of the file in bytes; None for any size.
        metadata: {text: text} to store in the file.
        dtypes: {name: dtype} of tensors that are float32 while the network trains, and of half precision in the file.
    """

    model: nn.Module
    plan: Plan | None
    auxiliary: AuxiliaryPlan
    budget: int | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def weights(self) -> list[PreparedWeight]:
        """The prepared weights, each once, sorted by their first names."""
        return prepared_weights(self.model)

    def code_bytes(self) -> int:
        """Bytes of the current codes of all weights in a file."""
        return section_bytes([weight.tensor().codes for weight in self.weights])

    def encode(self, *, progress: Progress | bool = False) -> CompressedModel:
        """Encode the network as it is now, whatever the size of the file.

        Args:
            progress: As in `export`.

        Raises:
            WeightError: A weight holds NaN or infinite values.
        """
        weights = {
            name: replace(tensor, dtype=str(self.dtypes[name]).removeprefix("torch.")) if name in self.dtypes else tensor
            for weight in self.weights
            for tensor in [weight.tensor()]
            for name in weight.names
        }
        tensors, parameters = plain_state_dict(self.model), parameters_of(self.model)
        tensors |= {name: tensors[name].to(dtype) for name, dtype in self.dtypes.items()}
        state = TensorState(tensors, self.metadata, epsilons_of(self.model), parameters)
        with show_progress(progress) as report:
            return encode_state(state, weights, self.auxiliary, plan=self.plan, report=report)

    def export(self, loader: Loader | None = None, *, progress: Progress | bool = False) -> CompressedModel:
        """Encode the network within the byte budget. The network stays prepared and keeps its values.

        If the file is too large, codes of magnitude 2 or more are lowered by one, in order of squared error per saved bit
        (`opq.training.budget.code_reduction`).

        Args:
            loader: Batches from which batch-norm statistics are estimated again if codes were lowered; None to keep them.
            progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each weight.

        Returns:
            The file, of at most `budget` bytes.

        Raises:
            PlanError: The network has been converted.
            TargetError: The codes cannot be reduced to the budget.
            WeightError: A weight holds NaN or infinite values.
        """
        return self.export_with_report(loader, progress=progress)[0]

    def export_with_report(
        self, loader: Loader | None = None, *, progress: Progress | bool = False
    ) -> tuple[CompressedModel, int, CodeReduction]:
        """As `export`; also returns the bytes of the file before codes were lowered, and how many codes were lowered."""
        if not prepared_weights(self.model):
            raise PlanError("the network is converted already; prepare it again, or call export before convert")
        with show_progress(progress) as report:
            return reduced_to_budget(self.model, partial(self.encode, progress=report), self.budget, loader)

    def convert(self) -> nn.Module:
        """Turn the weights into plain parameters that hold their codebook values, and return the network.

        Raises:
            WeightError: A weight holds NaN or infinite values; the network stays prepared.
        """
        weights = self.weights
        values = {id(weight.latent): weight.value() for weight in weights}
        with torch.no_grad():
            for weight in weights:
                weight.latent.copy_(values[id(weight.latent)])
        detach(self.model, weights)
        restore_dtypes(self.model, self.dtypes)
        return self.model

    def in_float32(self) -> PreparedModel:
        """The prepared network in float32, in place, if it has tensors in half precision; the file keeps their dtypes."""
        dtypes = {name: t.dtype for name, t in plain_state_dict(self.model).items() if t.dtype in HALF}
        if not dtypes:
            return self
        self.model.float()
        return replace(self, dtypes=dtypes)

    def __repr__(self) -> str:
        """Number of weights and byte budget."""
        budget = "any size" if self.budget is None else f"at most {self.budget:,} bytes"
        return f"<PreparedModel: {len(self.weights)} weights in codebooks, for a file of {budget}>"


def prepare(
    model: nn.Module,
    start: Start | None = None,
    *,
    calibration: Calibration | None = None,
    budget: int | None = None,
    reserve: float = RESERVE,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | bool = False,
    **options: Unpack[CompressionOptions],
) -> PreparedModel:
    """Attach masks and steps to the weights of `model`, in place, so that they stay in their codebooks.

    Any training loop and any optimizer of the network's parameters then train its latent weights. The codes take more bytes
    after training than before; `opq.BudgetScheduler` and the callbacks of `opq.callbacks` keep them within the budget while
    weights train.

    Args:
        model: The network.
        start: A config, from which a plan is made as in `opq.finetune`: smaller than a byte target by `reserve`, and with
            rounding "deadzone" in place of "auto"; a plan, whose masks follow from the current weights, less the smallest ones
            if it has a byte target and the file is not smaller by `reserve`; or a .opq file, whose tensors are loaded into the
            network and whose masks and steps are kept. None to take the config from `options`.
        calibration: A calibration of `model`, only with a config. Masks, steps, scales and initial values are then those of
            `Calibration.compress`.
        budget: Largest size of the exported file in bytes. Default: that of the target, or the size of the .opq file.
        reserve: Share of a byte target, 0 <= reserve < 1, that a config or a plan leaves free for the growth of the codes. At 0
            a plan is followed without changes.
        metadata: {text: text} to store in the exported file.
        progress: Whether to show a progress bar if stderr is a terminal; or a function to call after each step.
        options: The fields of a CompressionConfig as keywords.

    Returns:
        The prepared network, which exports files and converts back.

    Raises:
        PlanError: The plan was not made for this network, or the network is already prepared.
        SourceError: The .opq file cannot be read, or belongs to another network.
        FormatError: The .opq file is damaged.
        TargetError: The target is malformed or cannot be reached.
        ConfigError: Another setting is out of range.
        SelectionError: A glob matches no weight.
        WeightError: A weight cannot be quantized, or the file holds it with a table of levels.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepare() takes a torch module, got {type(model).__name__}")
    if start is not None and not isinstance(start, CompressionConfig | Plan | OpqFile | str | os.PathLike | bytes):
        expected = "a config, a plan or a .opq file, or keywords such as ratio=8"
        raise TypeError(f"prepare() takes {expected}, got {type(start).__name__}")
    if prepared_weights(model):
        raise PlanError("the network is prepared already; call convert() on the PreparedModel that opq.prepare returned")
    if start is not None and options:
        raise TypeError(f"prepare() takes a start or keywords, got both a start and {min(options)!r}")
    metadata = metadata or {}
    is_given = isinstance(start, Plan)
    if start is None or isinstance(start, CompressionConfig):
        config = as_config(start, options, "prepare")
        with show_progress(progress) as report:
            if calibration is None:
                start = training_plan(model, config, reserve, report)
            else:
                start = calibrated_file(model, calibration, config, reserve, report)
        if calibration is not None:
            budget = byte_budget(model, config) if budget is None else budget
    elif calibration is not None:
        raise PlanError("a plan or a .opq file has masks and steps already; leave the calibration out")
    if isinstance(start, Plan):
        state = _carry_out(model, start.layers)
        makers = {
            name: partial(CodebookParametrization.from_plan, name, plan=layer, nonzero_over=state.nonzero_over(name))
            for name, layer in start.layers.items()
        }
        # Directions of weight_norm must keep their rows.
        prunable = {name: find_tensor(model, name).detach().clone() for name in makers if state.nonzero_over(name) is None}
        attach(model, makers)
        prepared = PreparedModel(model, start, start.auxiliary, start.budget if budget is None else budget, metadata)
        if prepared.budget is not None and is_given and reserve:
            prune(prepared.weights, prunable, prepared.encode().file_bytes - prepared.budget * (1.0 - reserve))
        return prepared
    if isinstance(start, OpqFile):
        return _from_file(model, start, budget, metadata)
    with OpqFile(start) as file:
        return _from_file(model, file, budget, metadata)


def _carry_out(model: nn.Module, names: Collection[str]) -> ReparametrizedState:
    """Set pruned and weight-normalized weights to what the network makes of them, as a plan has them; it computes the same."""
    tensors = model.state_dict()
    state = ReparametrizedState(as_state(model), [name for name in names if name in tensors])
    with torch.no_grad():
        for name in state.changed:
            tensors[name].copy_(save_load.to_tensor(state[name]))
    return state


def _from_file(model: nn.Module, file: OpqFile, budget: int | None, metadata: Mapping[str, str]) -> PreparedModel:
    """Load the tensors of a file into `model`, and attach its masks and steps."""
    contents = {name: _without_trellis(file[name]) for name in file}
    state = model.state_dict()
    for name in [*state, *contents]:
        if name not in state or name not in contents:
            only = "network" if name in state else "file"
            raise SourceError(file.place("tensors"), f"it is not of this network: {name!r} is in the {only} only")
        if tuple(state[name].shape) != contents[name].shape:
            raise SourceError(
                file.place(f"tensor {name!r}"),
                f"its shape is {contents[name].shape}, that in the network {tuple(state[name].shape)}",
            )
    makers = {}
    for name, content in contents.items():
        if isinstance(content, CompressedTensor):
            find_tensor(model, name)
            if not isinstance(content.codebook, UniformCodebook | ScaledCodebook):
                raise WeightError(
                    name,
                    content.shape,
                    "it has a table of levels, but training needs a step; compress the network to a size first",
                )
            makers[name] = partial(CodebookParametrization.from_file, tensor=content, codebook=content.codebook)
    model.load_state_dict(
        {
            name: save_load.to_tensor(content.values() if isinstance(content, CompressedTensor) else content)
            for name, content in contents.items()
        }
    )
    attach(model, makers)
    form = "folded" if any(has_folded_statistics(module) for module in model.modules()) else "keep"
    auxiliary = AuxiliaryPlan(requested_storage(file.entries), form, shared_eps(epsilons_of(model)))
    return PreparedModel(model, None, auxiliary, file.file_bytes if budget is None else budget, {**file.metadata, **metadata})


def _without_trellis(content: CompressedTensor | NDArray[np.generic]) -> CompressedTensor | NDArray[np.generic]:
    """A tensor of a file for training, which rounds each weight alone."""
    return content.without_trellis if isinstance(content, CompressedTensor) else content
