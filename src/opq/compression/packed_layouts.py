"""Weights whose codes are packed into words by another quantizer, which only that quantizer's own code can read.

They are recognised by the names and integer dtypes of the tensors that belong together. Other int8 or float8 tensors with
scales beside them are stored exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from opq.checkpoints import State
from opq.codec.file_writer import in_order
from opq.errors import WeightError


@dataclass(frozen=True)
class _Layout:
    """How a quantizer names the tensors of a weight.

    Args:
        quantizer: Its name.
        codes: How the name of the tensor of codes ends.
        beside: How the names of its other tensors end, in place of `codes`.
    """

    quantizer: str
    codes: str
    beside: tuple[str, ...]


_LAYOUTS = (
    _Layout("GPTQ or AWQ", "qweight", ("qzeros", "scales")),
    _Layout("compressed-tensors", "weight_packed", ("weight_scale",)),
    _Layout("bitsandbytes, 8 bits", "weight", ("SCB",)),
    _Layout("bitsandbytes, 4 bits", "", (".absmax", ".quant_map")),
    _Layout("torchao", "qdata", ("scale",)),
    _Layout("MXFP4", "_blocks", ("_scales",)),
)


def packed_weights(state: State) -> Iterator[tuple[str, str]]:
    """(name, quantizer) of the tensors of packed codes in a checkpoint, in order.

    Args:
        state: The checkpoint.
    """
    for name in in_order(state):
        if name in state.packed:
            yield name, state.packed[name]
        elif (quantizer := _quantizer(state, name)) is not None and state.describe(name)[0].startswith(("int", "uint")):
            yield name, quantizer


def refuse_packed(state: State) -> None:
    """Refuse a checkpoint that has packed weights, because its other tensors are not what should be quantized.

    Raises:
        WeightError: It has one.
    """
    for name, quantizer in packed_weights(state):
        raise WeightError(
            name,
            state.describe(name)[1],
            f"it is quantized already ({quantizer}); compress the original weights, use lossless (--lossless), or name the "
            "weights to compress with include",
        )


def _quantizer(state: State, name: str) -> str | None:
    for layout in _LAYOUTS:
        stem = name.removesuffix(layout.codes)
        is_whole = stem == "" or stem[-1] in "._:" or layout.codes[:1] in ("", "_")
        if name.endswith(layout.codes) and is_whole and all(stem + other in state for other in layout.beside):
            return layout.quantizer
    return None
