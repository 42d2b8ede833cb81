"""Checkpoints in ONNX models: initializers and large constants as tensors, and the graph without them as one more tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints.file_kind import check_memory
from opq.checkpoints.file_state import FileState, TensorPlace, contents_of
from opq.checkpoints.onnx_graph import GRAPH, Graph, check_graph, dtype_of, pack_graph, refer, tensors_of, unique_name
from opq.checkpoints.state import State, TensorState
from opq.errors import MissingExtraError, SourceError

_SMALLEST_CONSTANT = 64
"""Elements of the smallest constant that becomes a tensor; smaller ones, such as shapes, stay in the graph."""

_MOST_DIMENSIONS = 32


@dataclass(frozen=True)
class _Layout:
    """How a tensor lies in the State, whose rows are outputs.

    Args:
        transposed: Whether it is a matrix (inputs, outputs) in the model.
        merged: Whether it is (directions, rows, inputs) in the model; the State has (directions * rows, inputs).
    """

    transposed: bool = False
    merged: bool = False

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the State."""
        if self.merged:
            return shape[0] * shape[1], shape[2]
        return shape[::-1] if self.transposed else shape


class OnnxState(State):
    """The tensors of an ONNX model, and its graph under the name GRAPH.

    A matrix that MatMul and Gemm use as (inputs, outputs) is given as (outputs, inputs), and a weight of a recurrent layer as a
    matrix, as PyTorch has them: rounding and contexts expect outputs in rows.

    Args:
        states: {name: the state that holds the tensor as it is in the model}.
        layouts: {name: its layout} of the tensors that lie differently.
        parameters: {name: whether it is a parameter}, if its uses show it.
        packed: {name: the operator that reads packed codes from it}.
        epsilons: {name of a batch norm: its eps}.
    """

    def __init__(
        self,
        states: Mapping[str, State],
        layouts: Mapping[str, _Layout],
        parameters: Mapping[str, bool | None],
        packed: Mapping[str, str],
        epsilons: Mapping[str, float],
    ) -> None:
        self._states = states
        self._layouts = layouts
        self._parameters = parameters
        self.packed = packed
        self.epsilons = epsilons

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """As State.describe."""
        kind, shape = self._states[name].describe(name)
        return kind, self._layouts.get(name, _Layout()).shape(shape)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return np.asarray(self._view(name), order="C")

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """As State.rows."""
        if name not in self._layouts:
            return self._states[name].rows(name, start, stop)
        return np.asarray(self._view(name)[start:stop], order="C")

    def _view(self, name: str) -> NDArray[np.generic]:
        array = self._states[name][name]
        layout = self._layouts.get(name, _Layout())
        return array.T if layout.transposed else array.reshape(layout.shape(array.shape))

    def is_parameter(self, name: str) -> bool | None:
        """As State.is_parameter."""
        return self._parameters.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)


def read_onnx_file(path: Path) -> OnnxState:
    """Read an ONNX model. It is not run, and its operators need not be known.

    Initializers, and constants of at least 64 elements, become tensors under the names of their values. Strings, sparse tensors
    and types of less than 8 bits stay in the graph. Tensors with data in other files are read when they are used.

    Args:
        path: The file.

    Raises:
        SourceError: The file is damaged, or refers to data outside of its folder.
        MissingExtraError: onnx is not installed.
    """
    model = _parse(path)
    try:
        check_graph(model)
        return _take_tensors(path, model)
    except ValueError as error:
        raise SourceError(path, f"a damaged ONNX model: {str(error).splitlines()[0]:.200}") from None


def _parse(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "onnx") from None
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise SourceError(path, error.strerror or str(error)) from None
    except (DecodeError, ValueError):
        raise SourceError(path, "not an ONNX model, or a damaged one; export or copy it again") from None
    if not model.HasField("graph"):
        raise SourceError(path, "an ONNX model without a graph")
    return model


def _take_tensors(path: Path, model: Any) -> OnnxState:
    """Take the tensors out of a model, which keeps references to them."""
    graph = Graph(model)
    epsilons = graph.epsilons()
    inline: dict[str, NDArray[np.generic]] = {}
    places: dict[str, TensorPlace] = {}
    layouts: dict[str, _Layout] = {}
    parameters: dict[str, bool | None] = {}
    packed: dict[str, str] = {}
    taken = {GRAPH}
    for value, tensor, is_constant in tensors_of(model):
        shape, kind = _shape_of(value, tensor), dtype_of(tensor)
        if not _is_taken(tensor, shape, kind, is_constant):
            continue
        name = unique_name(value, taken)
        taken.add(name)
        if tensor.data_location == 1:
            places[name] = _place_of(path, value, tensor, kind, shape)
        else:
            inline[name] = _array_of(value, tensor, kind, shape)
        is_matrix = kind in dtypes.COMPRESSIBLE and len(shape) == 2
        if is_matrix and graph.is_transposed(value):
            layouts[name] = _Layout(transposed=True)
        elif kind in dtypes.COMPRESSIBLE and len(shape) == 3 and graph.is_recurrent(value):
            layouts[name] = _Layout(merged=True)
        parameters[name] = graph.is_parameter(value, is_constant)
        if (operator := graph.packed_by(value)) is not None:
            packed[name] = f"ONNX's {operator}"
        refer(tensor, name, name in layouts and layouts[name].transposed)
    for file in {place.path for place in places.values()}:
        check_memory(file, ((name, place.nbytes) for name, place in places.items() if place.path == file))
    inline[GRAPH] = pack_graph(model)
    states: dict[str, State] = {**dict.fromkeys(inline, TensorState(inline)), **dict.fromkeys(places, FileState(places))}
    return OnnxState(states, layouts, parameters, packed, epsilons)


def _is_taken(tensor: Any, shape: tuple[int, ...], kind: str, is_constant: bool) -> bool:
    """Whether a tensor is taken out of the graph. Data in another file must be: they would be lost."""
    is_known = kind in dtypes.NUMPY and dtypes.BITS[kind] >= 8
    if tensor.data_location == 1 and not is_known:
        raise ValueError(f"tensor {tensor.name!r:.80} of type {kind} has data in another file, which opq does not read")
    smallest = _SMALLEST_CONSTANT if is_constant and tensor.data_location != 1 else 1
    return is_known and math.prod(shape) >= smallest


def _shape_of(value: str, tensor: Any) -> tuple[int, ...]:
    shape = tuple(tensor.dims)
    if len(shape) > _MOST_DIMENSIONS or min(shape, default=0) < 0:
        raise ValueError(f"tensor {value!r:.80} has the dimensions {shape!r:.80}")
    return shape


def _array_of(value: str, tensor: Any, kind: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """The data of a tensor that holds them."""
    from onnx import numpy_helper

    dtype = dtypes.NUMPY[kind]
    if tensor.HasField("raw_data"):
        raw, expected = tensor.raw_data, math.prod(shape) * dtype.itemsize
        if len(raw) != expected:
            raise ValueError(f"tensor {value!r:.80} {shape} of {kind} must have {expected:,} bytes, got {len(raw):,}")
        return np.frombuffer(raw, dtype).reshape(shape)
    try:
        return np.asarray(numpy_helper.to_array(tensor), dtype)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"tensor {value!r:.80} {shape} of {kind} has other numbers of elements") from None


def _place_of(path: Path, value: str, tensor: Any, kind: str, shape: tuple[int, ...]) -> TensorPlace:
    """Where the data of a tensor lie in another file, which must be in the folder of the model."""
    keys = {entry.key: entry.value for entry in tensor.external_data}
    location = keys.get("location", "")
    parts = PurePosixPath(location).parts
    if (
        not parts
        or ".." in parts
        or location.startswith(("/", "\\"))
        or "\\" in location
        or "\0" in location
        or ":" in parts[0]
    ):
        raise ValueError(f"tensor {value!r:.80} has data in {location!r:.80}, which is not in its folder")
    file = path.parent / location
    try:
        offset, length = int(keys.get("offset", 0)), int(keys.get("length", -1))
    except ValueError:
        raise ValueError(f"tensor {value!r:.80} has an offset or a length that is no number") from None
    if not file.is_file():
        raise SourceError(file, f"no such file, but tensor {value!r:.80} of {path.name} has its data in it")
    with file.open("rb") as data:
        place = TensorPlace(file, contents_of(data), offset, kind, shape)
    if length not in (-1, place.nbytes):
        raise ValueError(f"tensor {value!r:.80} {shape} of {kind} must have {place.nbytes:,} bytes, got {length:,}")
    if offset < 0 or offset + place.nbytes > place.contents.size:
        raise SourceError(file, f"tensor {value!r:.80} ends after the file; it is damaged, or not complete")
    return place
