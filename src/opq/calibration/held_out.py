"""Inputs that calibration does not see, on which its file must be better than the file from the weights alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from opq import dtypes
from opq.calibration.batch_norm_pairs import outputs_of
from opq.codec.file_reader import OpqFile
from opq.compression.compressed_model import CompressedModel

SHARE, MOST, FEWEST = 8, 64, 16
"""One of SHARE inputs is held out, at most MOST; of fewer than FEWEST inputs none is, and all of them are compared on."""

_BATCH = 16


def split(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs to calibrate on, and those to compare on: the last ones.

    Args:
        inputs: (samples, ...), at least one.
    """
    if len(inputs) < FEWEST:
        return inputs, inputs
    count = min(len(inputs) // SHARE, MOST)
    return inputs[:-count], inputs[-count:]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A network and inputs on which its files are compared.

    Args:
        model: The dense network, in evaluation mode.
        inputs: (samples, ...).
    """

    model: nn.Module
    inputs: Tensor

    def error(self, compressed: CompressedModel) -> float:
        """The squared error of the outputs over the squared outputs, both sums over all inputs and outputs; >= 0.

        Args:
            compressed: A file of this network.
        """
        network = copy.deepcopy(self.model)
        error = energy = 0.0
        with torch.no_grad():
            tensors = network.state_dict()  # it shares the memory of parameters and buffers
            with OpqFile(compressed.data) as file:
                for name in file:
                    if dtypes.name_of((array := file.array(name)).dtype) in dtypes.COMPRESSIBLE:  # the others are exact
                        tensors[name].copy_(torch.from_numpy(array.astype(np.float64)))
            for batch in torch.split(self.inputs, _BATCH):
                wanted, got = (outputs_of(model, batch).double() for model in (self.model, network))
                error += float((got - wanted).square().sum())
                energy += float(wanted.square().sum())
        return error / energy if energy > 0.0 else error
