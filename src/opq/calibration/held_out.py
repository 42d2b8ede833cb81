"""Errors of files on inputs that calibration does not use."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from opq import dtypes
from opq.calibration.batch_norm_pairs import outputs_of
from opq.codec.file_reader import OpqFile
from opq.compression.compressed_model import CompressedModel

_BATCH = 16


def output_errors(model: nn.Module, files: Sequence[CompressedModel], inputs: Tensor) -> list[float]:
    """The squared error of the outputs over the squared outputs, both sums over all inputs and outputs, of each file; >= 0.

    Args:
        model: The dense network, in evaluation mode.
        files: Files of this network.
        inputs: (samples, ...).
    """
    networks = [_network_of(model, file) for file in files]
    errors, energy = [0.0] * len(files), 0.0
    with torch.no_grad():
        for batch in torch.split(inputs, _BATCH):
            wanted = outputs_of(model, batch).double()
            energy += float(wanted.square().sum())
            for number, network in enumerate(networks):
                errors[number] += float((outputs_of(network, batch).double() - wanted).square().sum())
    return [error / energy if energy > 0.0 else error for error in errors]


@torch.no_grad()
def _network_of(model: nn.Module, compressed: CompressedModel) -> nn.Module:
    """A copy of the network with the tensors of a file."""
    network = copy.deepcopy(model)
    tensors = network.state_dict()  # it shares the memory of parameters and buffers
    with OpqFile(compressed.data) as file:
        for name in file:
            array = file.array(name)
            if dtypes.name_of(array.dtype) in dtypes.COMPRESSIBLE:  # the others are exact
                tensors[name].copy_(torch.from_numpy(array.astype(np.float64)))
    return network
