"""Weights of an ONNX model as integers: nodes that multiply codes by their steps in place of weights in floating point.

A matrix of 4 bits that only products use becomes MatMulNBits, an embedding GatherBlockQuantized (both of ONNX Runtime), and any
other weight an initializer of integers behind DequantizeLinear: MatMulNBits is slow with 8 bits (docs/log.md). Each value is
one product of a code and a step, rounded as in a .opq file, so the network computes with weights that have the file's bits.
ScatterElements puts in the values of outliers. The factor of a product is reshaped in between: if it came straight from
DequantizeLinear, ONNX Runtime would round the other factor to 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opq.checkpoints.onnx_graph import Use, is_product, is_true, parts_of, unique_name
from opq.reporting.integer_grid import Grid

_MICROSOFT = "com.microsoft"
_BLOCKS = (16, 32, 64, 128, 256)
_SCATTER_ELEMENTS, _DEQUANTIZE_BY_AXIS, _DEQUANTIZE_INT4 = 11, 13, 21
"""The versions of ONNX's operators in which Scatter is renamed, DequantizeLinear has an axis, and takes int4."""

_INT4_VERSION = 10
"""The version of ONNX models from which there is int4."""


class IntegerRewriter:
    """Replaces weights of a model by integers. Call `finish` after the last one.

    Args:
        model: The ModelProto, which is changed.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._graph = model, model.graph
        self._uses: dict[str, list[Use]] = {}
        for node in self._graph.node:
            for position, name in enumerate(node.input):
                self._uses.setdefault(name, []).append(Use(node, position))
        inner = (node for part in parts_of(model) if part is not self._graph for node in part.node)
        self._kept = {value.name for value in self._graph.output} | {name for node in inner for name in node.input}
        self._names = {name for node in self._graph.node for name in (*node.input, *node.output)}
        self._names.update(tensor.name for tensor in self._graph.initializer)
        self._first: list[Any] = []
        self._behind: dict[str, Any] = {}
        self._removed: set[str] = set()
        self._version = max((opset.version for opset in model.opset_import if opset.domain == ""), default=1)
        self._has_int4 = False

    def replace(self, value: str, grid: Grid) -> None:
        """Replace a tensor of the main graph.

        Args:
            value: Its name.
            grid: The integers.
        """
        self._removed.add(value)
        uses = self._uses.get(value, [])
        is_matrix = grid.dtype == "float32" and grid.codes.ndim == 2 and not grid.places.size
        is_plain = is_matrix and value not in self._kept and bool(uses)
        if is_plain and grid.bits == 4 and self._by_product(value, grid, uses):
            return
        if is_plain and all(_is_embedding(use) for use in uses) and grid.axis == 0 and grid.codes.shape[1] * grid.bits % 8 == 0:
            self._by_gather(value, grid, uses)
            return
        self._by_dequantize(value, grid)

    def finish(self) -> None:
        """Put new nodes first, and remove the old tensors."""
        graph, model = self._graph, self._model
        nodes = list(self._first)
        for node in graph.node:
            if not self._removed.intersection(node.output):
                nodes.append(node)
                nodes.extend(self._behind[name] for name in node.output if name in self._behind)
        changed = type(graph)(node=nodes)
        graph.ClearField("node")
        graph.node.extend(changed.node)
        for tensor in [tensor for tensor in graph.initializer if tensor.name in self._removed]:
            graph.initializer.remove(tensor)
        for entry in [entry for entry in graph.input if entry.name in self._removed]:
            graph.input.remove(entry)
        domains = {opset.domain for opset in model.opset_import}
        if _MICROSOFT not in domains and any(node.domain == _MICROSOFT for node in graph.node):
            model.opset_import.add(domain=_MICROSOFT, version=1)
        if self._has_int4:
            model.ir_version = max(model.ir_version, _INT4_VERSION)

    def _by_product(self, value: str, grid: Grid, uses: list[Use]) -> bool:
        """Replace the products that use a matrix; False if something else uses it, or its scales belong to inputs."""
        products, turned = list(uses), False
        if all(_is_turn(use) for use in uses):
            turned = True
            made = [use.node.output[0] for use in uses]
            products = [use for name in made for use in self._uses.get(name, [])]
            if any(name in self._kept for name in made):
                return False
        rows = {_outputs_axis(use) for use in products}
        if len(rows) != 1 or not all(_is_plain_product(use) for use in products):
            return False
        outputs = rows.pop() if not turned else 1 - rows.pop()
        if grid.steps.ndim and grid.axis != outputs:
            return False
        codes = grid.codes if outputs == 0 else grid.codes.T
        block = min(_BLOCKS, key=lambda block: -(-codes.shape[1] // block) * (block * grid.bits // 8 + 4))
        packed = _packed(codes, grid.bits, block)
        operands = [self._add(value, "codes", packed), self._add_steps(value, grid, codes.shape[0], packed.shape[1])]
        if turned:
            self._removed.update(use.node.output[0] for use in uses)
        for use in products:
            self._multiply(use.node, operands, codes.shape, grid.bits, block)
        return True

    def _multiply(self, node: Any, operands: list[str], shape: tuple[int, ...], bits: int, block: int) -> None:
        """Turn MatMul or Gemm into MatMulNBits, and an addition behind it if Gemm has a bias."""
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        product, output = node, node.output[0]
        factor = node.input[0]
        _become(product, "MatMulNBits", [factor, *operands], {"K": shape[1], "N": shape[0], "bits": bits, "block_size": block})
        if bias:
            product.output[0] = self._name(output, "product")
            self._behind[product.output[0]] = _node("Add", [product.output[0], bias], [output])

    def _by_gather(self, value: str, grid: Grid, uses: list[Use]) -> None:
        width = grid.codes.shape[1]
        block = max(_BLOCKS[0], 1 << (width - 1).bit_length())
        packed = _packed(grid.codes, grid.bits, width)[:, 0]
        operands = self._add(value, "codes", packed), self._add_steps(value, grid, len(packed), 1)
        attributes = {"bits": grid.bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        for use in uses:
            _become(use.node, "GatherBlockQuantized", [operands[0], use.node.input[1], operands[1]], attributes)

    def _by_dequantize(self, value: str, grid: Grid) -> None:
        from ml_dtypes import int4
        from onnx import TensorProto

        self._has_int4 |= grid.bits == 4
        is_factor = any(is_product(use) or _is_turn(use) for use in self._uses.get(value, []))
        integers = grid.codes[..., None] if is_factor else grid.codes
        codes = self._add(value, "codes", integers.astype(int4) if grid.bits == 4 else integers)
        steps = self._add(value, "step", grid.steps)
        is_standard = self._version >= (_DEQUANTIZE_INT4 if grid.bits == 4 else _DEQUANTIZE_BY_AXIS)
        attributes = {"axis": grid.axis} if grid.steps.ndim else {}
        made = [("DequantizeLinear", [codes, steps], attributes, "" if is_standard else _MICROSOFT)]
        if grid.places.size:
            scatter = "ScatterElements" if self._version >= _SCATTER_ELEMENTS else "Scatter"
            outliers = [self._add(value, "places", grid.places), self._add(value, "outliers", grid.outliers)]
            line = self._add(value, "line", np.array([-1]))
            made += [("Reshape", ["", line], {}, ""), (scatter, ["", *outliers], {}, "")]
        if grid.places.size or is_factor:
            shape = self._add(value, "shape", np.array(grid.codes.shape))
            made.append(("Reshape", ["", shape], {}, ""))
        if grid.dtype != "float32":
            made.append(("Cast", [""], {"to": TensorProto.DataType.Value(grid.dtype.upper())}, ""))
        names = [*(self._name(value, operator) for operator, *_ in made[:-1]), value]
        for number, (operator, (first, *rest), attributes, domain) in enumerate(made):
            inputs = [first or names[number - 1], *rest]
            self._first.append(_node(operator, inputs, [names[number]], attributes, domain))

    def _add_steps(self, value: str, grid: Grid, rows: int, blocks: int) -> str:
        """Add the steps of each row and block."""
        return self._add(value, "step", np.ascontiguousarray(np.broadcast_to(grid.steps.reshape(-1, 1), (rows, blocks))))

    def _add(self, value: str, what: str, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = self._name(value, what)
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _name(self, value: str, what: str) -> str:
        name = unique_name(f"{value}_{what}", self._names)
        self._names.add(name)
        return name


def _packed(codes: NDArray[np.int8], bits: int, block: int) -> NDArray[np.uint8]:
    """Codes (rows, columns) as (rows, blocks, bytes of a block), plus 2^(bits - 1), the lower half of a byte first."""
    rows, columns = codes.shape
    zero = 1 << (bits - 1)
    blocks = -(-columns // block)
    packed = np.full((rows, blocks * block), zero, np.uint8)
    packed[:, :columns] = (codes.astype(np.int16) + zero).astype(np.uint8)
    if bits == 4:
        packed = packed[:, ::2] | packed[:, 1::2] << 4
    return packed.reshape(rows, blocks, -1)


def _outputs_axis(use: Use) -> int:
    """The axis of a factor that has the outputs: 1 for (inputs, outputs)."""
    return 0 if is_true(use.node, "transB") else 1


def _is_plain_product(use: Use) -> bool:
    """Whether a use is a product A B or A B^T, plus a bias."""
    factors = [attribute.f for attribute in use.node.attribute if attribute.name in ("alpha", "beta")]
    return is_product(use) and all(factor == 1.0 for factor in factors) and not is_true(use.node, "transA")


def _is_turn(use: Use) -> bool:
    """Whether a use transposes a matrix."""
    orders = [list(attribute.ints) for attribute in use.node.attribute if attribute.name == "perm"]
    return use.node.op_type == "Transpose" and orders in ([], [[1, 0]])


def _is_embedding(use: Use) -> bool:
    return use.node.op_type == "Gather" and use.node.domain == "" and use.position == 0 and not is_true(use.node, "axis")


def _become(node: Any, operator: str, inputs: list[str], attributes: Mapping[str, int]) -> None:
    """Turn a node into one of ONNX Runtime's own operators."""
    node.CopyFrom(_node(operator, inputs, list(node.output), attributes, _MICROSOFT, node.name))


def _node(
    operator: str,
    inputs: list[str],
    outputs: list[str],
    attributes: Mapping[str, int] | None = None,
    domain: str = "",
    name: str = "",
) -> Any:
    from onnx import helper

    return helper.make_node(operator, inputs, outputs, name=name or None, domain=domain or None, **(attributes or {}))
