"""Errors of files on inputs that calibration does not use."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from opq import dtypes
from opq.calibration.inputs import Batch
from opq.calibration.outputs import errors, is_next_token, outputs_of
from opq.codec.file_reader import OpqFile
from opq.compression.compressed_model import CompressedModel
from opq.progress import Progress, counted, no_progress


def output_errors(
    model: nn.Module, files: Sequence[CompressedModel], batches: Sequence[Batch], report: Progress = no_progress
) -> list[float]:
    """The error of the outputs of each file, >= 0.

    Args:
        model: The dense network, in evaluation mode and float32.
        files: Files of this network.
        batches: Inputs, few at a time.
        report: Called after each batch.

    Returns:
        For each file, the mean Kullback-Leibler divergence of next-token distributions in nats; of other outputs the squared
        error over their mean square.
    """
    networks = [_network_of(model, file) for file in files]
    totals, counts = [0.0] * len(files), 0.0
    with torch.no_grad():
        for batch in counted(batches, report, "comparing outputs", len(batches)):
            wanted = outputs_of(model, batch)
            distributions = is_next_token(batch, wanted)
            for number, network in enumerate(networks):
                error, count = errors(wanted, outputs_of(network, batch), distributions=distributions)
                totals[number] += error
            counts += count
    return [total / counts for total in totals]


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
