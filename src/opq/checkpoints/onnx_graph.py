"""The graph of an ONNX model: where its tensors are, what uses them, and its form without them.

In a .opq file the graph is the tensor GRAPH: a deflated ModelProto whose tensors are elsewhere in the file. Each of these has
"external data" in the sense of ONNX, whose location is the name of the tensor in the .opq file. Nothing here runs a graph.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq import dtypes

GRAPH = "__onnx_graph__"
"""The name of the graph among the tensors of a .opq file."""

LARGEST_GRAPH, GRAPH_START, GRAPH_EXPANSION = 2**26, 2**20, 64
"""An inflated graph has at most min(LARGEST_GRAPH, GRAPH_START + GRAPH_EXPANSION * deflated bytes) bytes, as a header has."""

LARGEST_COUNT = 2**18
"""The most nodes and attributes of a model, which bounds the time that a small file may take."""

TRANSPOSED = "transposed"
"""The key in a tensor's external data which says that its two axes are reversed in the .opq file."""

_WEIGHTS = {
    "Conv": (1,), "ConvTranspose": (1,), "ConvInteger": (1,), "Gemm": (1,), "MatMul": (0, 1), "Gather": (0,), "LSTM": (1, 2),
    "GRU": (1, 2), "RNN": (1, 2), "Attention": (1,),
}  # fmt: skip
"""{operator: the inputs that are weights}"""

_VECTORS = {
    "Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "LSTM": (3,), "GRU": (3,), "RNN": (3,), "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2), "RMSNormalization": (1,), "PRelu": (1,),
}  # fmt: skip
"""{operator: the inputs that are biases or gains}"""

_EXACT = frozenset({
    "Resize", "Upsample", "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "Where",
})  # fmt: skip
"""Operators whose inputs are settings: sizes, scales of integers, masks."""

_PACKED = {"MatMulNBits": 1, "MatMulBnb4": 1, "GatherBlockQuantized": 0}
"""{operator: the input that holds packed codes of a quantized weight}"""

_MEAN, _USUAL_EPS = 3, 1e-5
"""The input of BatchNormalization that is the mean, and its eps by default."""

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True)
class Use:
    """A use of a value by a node.

    Args:
        node: The NodeProto.
        position: Which of its inputs the value is.
    """

    node: Any
    position: int

    def is_one_of(self, inputs: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether it is one of {operator: positions}."""
        return self.position in inputs.get(self.node.op_type, ())


class Graph:
    """What uses the tensors of a model.

    Names in subgraphs may hide those of outer graphs; here they count as one value, which can only make a tensor less of a
    weight, or more.

    Args:
        model: The ModelProto.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    @cached_property
    def uses(self) -> dict[str, list[Use]]:
        """{value: its uses}, in the order of nodes."""
        found: dict[str, list[Use]] = {}
        for part in parts_of(self._model):
            for node in part.node:
                for position, name in enumerate(node.input):
                    found.setdefault(name, []).append(Use(node, position))
        return found

    @cached_property
    def makers(self) -> dict[str, str]:
        """{value: the operator that makes it}"""
        return {name: node.op_type for part in parts_of(self._model) for node in part.node for name in node.output}

    def is_parameter(self, name: str, is_constant: bool) -> bool | None:
        """Whether a tensor is a parameter (True) or a setting (False) of the network; None if its uses do not show it.

        Args:
            name: The tensor.
            is_constant: Whether it is the value of a node, as exporters write what is no parameter, rather than an initializer.
        """
        uses = self.uses.get(name, [])
        if any(use.is_one_of(_WEIGHTS) or use.is_one_of(_VECTORS) or self._is_bias(use) for use in uses):
            return True
        if is_constant or any(use.node.op_type in _EXACT for use in uses):
            return False
        return None

    def _is_bias(self, use: Use) -> bool:
        """Whether a tensor is added to a product of matrices."""
        return use.node.op_type == "Add" and any(self.makers.get(name) == "MatMul" for name in use.node.input)

    def epsilons(self) -> dict[str, float]:
        """{name of a batch norm: its eps}, of those whose mean is named as in PyTorch."""
        found = {}
        for use in (use for uses in self.uses.values() for use in uses):
            if (
                use.node.op_type == "BatchNormalization"
                and use.position == _MEAN
                and use.node.input[_MEAN].endswith(".running_mean")
            ):
                eps = next((attribute.f for attribute in use.node.attribute if attribute.name == "epsilon"), _USUAL_EPS)
                found[use.node.input[_MEAN].removesuffix(".running_mean")] = eps
        return found

    def packed_by(self, name: str) -> str | None:
        """The operator that reads packed codes from a tensor; None if there is none."""
        operators = (use.node.op_type for use in self.uses.get(name, []) if _PACKED.get(use.node.op_type) == use.position)
        return next(operators, None)

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix has its outputs in columns, as MatMul and Gemm have them: (inputs, outputs)."""
        uses = self.uses.get(name, [])
        return bool(uses) and all(is_product(use) and not is_true(use.node, "transB") for use in uses)

    def is_recurrent(self, name: str) -> bool:
        """Whether a tensor is a weight (directions, rows, inputs) of a recurrent layer."""
        uses = self.uses.get(name, [])
        return bool(uses) and all(use.node.op_type in _RECURRENT and use.is_one_of(_WEIGHTS) for use in uses)


def is_product(use: Use) -> bool:
    """Whether the value is the right factor of a product of matrices."""
    return use.node.op_type in ("MatMul", "Gemm") and use.node.domain == "" and use.position == 1


def is_true(node: Any, name: str) -> bool:
    """Whether an attribute of a node is an integer other than 0."""
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def parts_of(model: Any) -> Iterator[Any]:
    """The GraphProtos and FunctionProtos of a model: its main graph first, then its functions and the graphs in nodes.

    Raises:
        ValueError: It has more than LARGEST_COUNT nodes and attributes.
    """
    count = 0
    waiting = [*reversed(model.functions), model.graph]
    while waiting:
        part = waiting.pop()
        yield part
        for node in part.node:
            count += 1 + len(node.attribute)
            if count > LARGEST_COUNT:
                raise ValueError(f"it has more than {LARGEST_COUNT:,} nodes and attributes")
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def tensors_of(model: Any) -> Iterator[tuple[str, Any, bool]]:
    """The tensors of all parts of a model, as `tensors_in` gives them; those of its main graph are first."""
    for part in parts_of(model):
        yield from tensors_in(part)


def tensors_in(part: Any) -> Iterator[tuple[str, Any, bool]]:
    """The tensors of one graph or function.

    Yields:
        The name of the value; the TensorProto; whether it is the value of a Constant node, rather than an initializer.
    """
    for tensor in getattr(part, "initializer", ()):
        yield tensor.name, tensor, False
    for node in part.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t, True


def check_graph(model: Any) -> None:
    """Check that values have one origin each, and that none depends on itself.

    Raises:
        ValueError: The graph is not such.
    """
    for part in parts_of(model):
        origins = Counter(tensor.name for tensor in getattr(part, "initializer", ()))
        origins.update(name for node in part.node for name in node.output if name)
        if repeated := [name for name, count in origins.items() if count > 1]:
            raise ValueError(f"value {repeated[0]!r:.80} has two origins")
        try:
            TopologicalSorter({name: list(node.input) for node in part.node for name in node.output if name}).prepare()
        except CycleError as error:
            raise ValueError(f"value {error.args[1][0]!r:.80} depends on itself") from None


def dtype_of(tensor: Any) -> str:
    """Name of a tensor's dtype, as in opq.dtypes if it is known there."""
    from onnx import helper

    try:
        return dtypes.name_of(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError):
        return f"number {tensor.data_type}"


def refer(tensor: Any, name: str, transposed: bool) -> None:
    """Take the data out of a tensor, and leave a reference to them.

    Args:
        tensor: The TensorProto; its name, type and dimensions stay.
        name: The name of the data in the .opq file.
        transposed: Whether their axes are reversed there.
    """
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = 1  # TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    if transposed:
        tensor.external_data.add(key=TRANSPOSED, value="1")


def reference_of(tensor: Any) -> tuple[str, bool] | None:
    """The name of a tensor's data, and whether they are transposed, as `refer` left them; None if it holds its data."""
    if tensor.data_location != 1:
        return None
    keys = {entry.key: entry.value for entry in tensor.external_data}
    return keys.get("location", ""), TRANSPOSED in keys


def pack_graph(model: Any) -> NDArray[np.uint8]:
    """The deflated bytes of a graph whose tensors were taken out, uint8 in one dimension.

    Raises:
        ValueError: It is larger than readers accept.
    """
    data = model.SerializeToString(deterministic=True)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(data) + deflate.flush()
    if len(data) > _largest_graph(len(packed)):
        raise ValueError(
            f"without its tensors it takes {len(data):,} bytes, at most {_largest_graph(len(packed)):,} are allowed; "
            "make large constants initializers"
        )
    return np.frombuffer(packed, np.uint8)


def unpack_graph(packed: NDArray[np.generic]) -> bytes:
    """The inverse of `pack_graph`: the bytes of a ModelProto.

    Raises:
        ValueError: They are not deflated bytes, or too many.
    """
    inflate = zlib.decompressobj(-15)
    largest = _largest_graph(packed.nbytes)
    try:
        data = inflate.decompress(packed.tobytes(), largest)
    except zlib.error as error:
        raise ValueError(f"it cannot be inflated ({error})") from None
    if not inflate.eof or inflate.unused_data:
        raise ValueError(f"it must inflate to at most {largest:,} bytes and end there")
    return data


def _largest_graph(packed_bytes: int) -> int:
    return min(LARGEST_GRAPH, GRAPH_START + GRAPH_EXPANSION * packed_bytes)


def unique_name(name: str, taken: Iterable[str]) -> str:
    """The name, with a number behind it if it is taken."""
    taken = taken if isinstance(taken, (set, dict)) else set(taken)
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}.{number}"
    return candidate
