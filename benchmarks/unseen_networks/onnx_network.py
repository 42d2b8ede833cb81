"""An ONNX model as a network of this benchmark: ONNX Runtime runs it with other weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from harness import ROOT
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from torch import Tensor
from zoo_networks import Network

from opq import dtypes
from opq.checkpoints.onnx_file import read_onnx_file
from opq.checkpoints.onnx_graph import GRAPH, reference_of, tensors_of, unpack_graph
from opq.checkpoints.state import StateView

PACKAGES = ROOT / ".unseen-packages"
"""The folder of requirements/unseen.lock, which `make unseen-packages` installs."""

Batch = Mapping[str, NDArray[np.generic]]
"""{name of an input: its values}."""


class OnnxNetwork(Network):
    """An ONNX model. Its tensors are as opq reads them from the file.

    Args:
        name: Name of the network.
        kind: What it is, in words.
        model: The file.
        batches: Its inputs.
        outputs: Names of the outputs that are measured, side by side along the last axis; None for the first one.
    """

    def __init__(
        self, name: str, kind: str, model: Path, batches: Sequence[Batch], outputs: Sequence[str] | None = None
    ) -> None:
        self.name, self.kind = name, kind
        self.inputs = batches
        self.batches = [torch.from_numpy(np.ascontiguousarray(values)) for batch in batches for values in batch.values()]
        state = read_onnx_file(model)
        self.checkpoint = _Floats(state)
        self._graph = unpack_graph(state[GRAPH])
        self._dense = {key: torch.from_numpy(np.array(state[key])) for key in state}
        self._outputs = outputs

    def source(self) -> Mapping[str, Tensor]:
        """As in `Network`."""
        return self._dense

    def run(self, batch: Tensor) -> Tensor:
        """Not used: a session takes several inputs."""
        raise NotImplementedError

    def _outputs_with(self, state: Mapping[str, Tensor]) -> Tensor:
        model = onnx.ModelProto.FromString(self._graph)
        for _, tensor, _ in tensors_of(model):
            if (reference := reference_of(tensor)) is not None:
                values = state.get(reference[0], self._dense[reference[0]]).numpy()
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                tensor.raw_data = (values.T if reference[1] else values).tobytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        names = self._outputs or [session.get_outputs()[0].name]
        try:
            results = [np.concatenate(session.run(names, dict(batch)), axis=-1) for batch in self.inputs]
        except Fail as error:  # such as factors of a Resize that are no longer whole
            raise RuntimeError(str(error)) from None
        return torch.from_numpy(np.concatenate(results))


class _Floats(StateView):
    """The tensors of floating point of a model, which are what all ways store. opq would store graph and integers too."""

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self._state[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._state if self._state.describe(name)[0] in dtypes.COMPRESSIBLE)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Decisions(OnnxNetwork):
    """Its outputs are scores of classes along the last axis; the measure is the agreement with the dense network."""

    measure_name = "decisions as dense, %"

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """The percentage of an input's decisions that are the same."""
        same = outputs.argmax(-1) == dense.argmax(-1)
        return 100.0 * same.double().reshape(len(same), -1).mean(1)


class Findings(OnnxNetwork):
    """Its outputs are probabilities, and those over a half are what it finds; the measure is F1 with the dense network's."""

    measure_name = "F1 with dense, %"
    threshold = 0.5

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """F1 of an input; 100 if both find nothing."""
        found, expected = outputs.flatten(1) > self.threshold, dense.flatten(1) > self.threshold
        both, total = (found & expected).sum(1).double(), found.sum(1) + expected.sum(1)
        return torch.where(total > 0, 200.0 * both / total.clamp(min=1), 100.0)


class Values(OnnxNetwork):
    """Its outputs are numbers; the measure is their mean distance from those of the dense network."""

    higher_is_better = False

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """Mean absolute difference of an input."""
        return (outputs - dense).abs().double().flatten(1).mean(1)


def package_file(relative: str) -> Path:
    """A file of the packages of requirements/unseen.lock. Exits 1 if it is missing."""
    path = PACKAGES / relative
    if not path.exists():
        print(f"unseen_networks: {relative} is not in .unseen-packages; run: make unseen-packages", file=sys.stderr)
        raise SystemExit(1)
    return path
