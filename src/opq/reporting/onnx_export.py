"""The ONNX model of a .opq file that was made from one, with weights in floating point or as integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq import dtypes
from opq.checkpoints.onnx_graph import GRAPH, dtype_of, parts_of, reference_of, tensors_in, tensors_of, unpack_graph
from opq.codec.file_reader import OpqFile
from opq.errors import FormatError, MissingExtraError, OutputError
from opq.progress import Progress, no_progress
from opq.quantization.compressed_tensor import CompressedTensor
from opq.reporting.integer_grid import BITS, grid_of
from opq.reporting.onnx_integers import IntegerRewriter

CHOICES = ("float", *BITS)
"""The choices of `weights`."""

LARGEST_MODEL = 2**31 - 2**26
"""The most bytes of tensors in a .onnx file, which must stay below 2 GiB. Those of a larger model are in a file beside it."""

_ALIGNMENT = 64


@dataclass
class OnnxModel:
    """An ONNX model to write.

    Args:
        tensors: Number of tensors that were put into the graph.
        integers: {weight: bits of its codes} of those that are integers.
        floats: {weight: why it stays in floating point} of the others, if integers were requested.
        model: The ModelProto.
    """

    model: Any
    tensors: int = 0
    integers: dict[str, int] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)

    def files(self, path: Path) -> Iterator[tuple[Path, list[bytes]]]:
        """(path, contents) of the files of the model, the one with its graph last.

        Args:
            path: The .onnx file.
        """
        tensors = [tensor for _, tensor, _ in tensors_of(self.model) if tensor.HasField("raw_data")]
        if sum(len(tensor.raw_data) for tensor in tensors) > LARGEST_MODEL:
            beside = path.with_name(f"{path.name}.data")
            yield beside, _take_data(tensors, beside.name)
        yield path, [self.model.SerializeToString()]


def onnx_model(file: OpqFile, path: Path, weights: str, report: Progress = no_progress) -> OnnxModel:
    """Put the tensors of a .opq file into its graph.

    Args:
        file: The open file.
        path: The path to write to, for messages.
        weights: "float", "int8", "int4" or "auto": whether weights become integers of 8 bits, of 4 bits, or of 4 bits if
            these hold all codes and of 8 otherwise. Every value stays the same.
        report: Called after each tensor.

    Raises:
        OutputError: The file was not made from an ONNX model.
        FormatError: Its graph is damaged, or does not fit to its tensors.
        MissingExtraError: onnx is not installed.
    """
    if GRAPH not in file:
        advice = "load it into the network (opq.load) and use torch.onnx.export, or compress an exported model"
        raise OutputError(path, f"the file holds no ONNX graph, because it was not made from an ONNX model; {advice}")
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise MissingExtraError(f"writing {path.name}", "onnx") from None
    try:
        result = OnnxModel(onnx.ModelProto.FromString(unpack_graph(file.array(GRAPH))))
        _fill(result, file, weights, report)
    except (ValueError, DecodeError) as error:
        raise FormatError(file.place("the ONNX graph"), f"{str(error).splitlines()[0]:.200}") from None
    return result


def _fill(result: OnnxModel, file: OpqFile, weights: str, report: Progress) -> None:
    if not result.model.HasField("graph"):
        raise ValueError("an ONNX model without a graph")
    rewriter = IntegerRewriter(result.model) if weights != "float" else None
    used: set[str] = set()
    parts = [(number > 0, list(tensors_in(part))) for number, part in enumerate(parts_of(result.model))]
    for is_inner, value, tensor in ((inner, value, tensor) for inner, tensors in parts for value, tensor, _ in tensors):
        reference = reference_of(tensor)
        if reference is None:
            continue
        name, transposed = reference
        if name in used:  # else a small graph could have a tensor's data any number of times
            raise ValueError(f"it refers twice to the tensor {name!r:.80}")
        used.add(name)
        content = _content(file, tensor, name, transposed)
        result.tensors += 1
        report("decoding", result.tensors, len(file) - 1)  # all but the graph
        if rewriter is not None and isinstance(content, CompressedTensor):
            grid = grid_of(content, tuple(tensor.dims), transposed, weights) if not is_inner else "in an inner graph"
            if not isinstance(grid, str):
                result.integers[name] = grid.bits
                rewriter.replace(value, grid)
                continue
            result.floats[name] = grid
        values = content.values() if isinstance(content, CompressedTensor) else content
        _set_data(tensor, values.T if transposed else values)
    if rewriter is not None:
        rewriter.finish()


def _content(file: OpqFile, tensor: Any, name: str, transposed: bool) -> CompressedTensor | NDArray[np.generic]:
    """The content of a tensor of the graph, of the type and the number of elements that the graph expects."""
    if name not in file:
        raise ValueError(f"it refers to a tensor {name!r:.80}, which the file does not have")
    entry, shape, expected = file.entry(name), tuple(tensor.dims), dtype_of(tensor)
    merged = (shape[0] * shape[1], shape[2]) if len(shape) == 3 else shape
    allowed = [shape, merged] if not transposed else [shape[::-1]] if len(shape) == 2 else []
    if entry.dtype != expected or dtypes.BITS[expected] < 8 or entry.shape not in allowed:
        raise ValueError(f"tensor {name!r:.80} is {entry.dtype} {entry.shape}, but the graph has {expected} {shape!r:.80}")
    return file[name]


def _set_data(tensor: Any, values: NDArray[np.generic]) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = values.tobytes()


def _take_data(tensors: list[Any], location: str) -> list[bytes]:
    """Take the data out of tensors, which get references to a file of this name, and return its contents."""
    pieces: list[bytes] = []
    offset = 0
    for tensor in tensors:
        data = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = 1  # TensorProto.EXTERNAL
        keys: Mapping[str, str] = {"location": location, "offset": str(offset), "length": str(len(data))}
        for key, value in keys.items():
            tensor.external_data.add(key=key, value=value)
        padding = -len(data) % _ALIGNMENT
        pieces += [data, bytes(padding)]
        offset += len(data) + padding
    return pieces
