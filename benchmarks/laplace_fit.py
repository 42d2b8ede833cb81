"""How well the bytes of a file are predicted before it is written, layer by layer.

Claim: the Laplace density predicts the entropy of the codes of most layers to a few percent, and is far off in layers that do
not follow it. The plan, which measures magnitudes and the gain of context modelling, predicts the file to a few percent.

    python benchmarks/laplace_fit.py

There is a row for every layer of three networks at file ratios 4, 10, 20 and 40, with dead-zone rounding. The row "(total)" is
the sum over the layers.

laplace_bytes    bytes of the layer's codes if its weights were exactly Laplace-distributed with its mean magnitude
entropy_bytes    zero-order entropy of the layer's codes
predicted_bytes  bytes that the plan predicts, from a sample of the magnitudes and excerpts of some layers
measured_bytes   bytes of the layer's section in the file made by this plan
laplace_error    relative to entropy_bytes, since neither uses a weight's neighbours
predicted_error  relative to measured_bytes
shape_index      root mean square over sqrt(2) laplace_scale: 1 for a Laplace density, 0.886 for a Gaussian one, above 1 for a
                 heavier tail than Laplace's
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from harness import RATIOS, Row, checkpoints, entropy_bytes, load, print_rows, save_result
from numpy.typing import NDArray

import opq
from opq.rate_distortion import laplace

TOTAL = "(total)"
WORST_RATIO, WORST_LAYERS = 20.0, 5


def main() -> int:
    """Compare every network at every ratio; the exit status."""
    rows: list[Row] = []
    for network, path in checkpoints().items():
        tensors = load(path)
        for ratio in RATIOS:
            plan = opq.plan(tensors, ratio=ratio, rounding="deadzone")
            rows += _compare(network, ratio, tensors, plan)
    print_rows([row for row in rows if row["layer"] == TOTAL])
    print(f"\nThe {WORST_LAYERS} layers of each network that the Laplace density predicts worst, at ratio {WORST_RATIO:g}:")
    print_rows(_worst(rows))
    save_result("laplace_fit", rows, seed=None)
    return 0


def _compare(network: str, ratio: float, tensors: dict[str, NDArray[Any]], plan: opq.Plan) -> list[Row]:
    """A row for each layer, and one for their total."""
    rows = []
    with opq.OpqFile(opq.compress(tensors, plan).data) as file:
        measured = {entry.name: file.section_bytes(entry.section) for entry in file.entries}
        entropy = {name: entropy_bytes(file[name].codes) for name in plan.layers}
    for name, layer in plan.layers.items():
        by_density, predicted = _laplace_bytes(tensors[name], layer), layer.bits * layer.count / 8.0
        scale, shape = _fit(tensors[name])
        rows.append(_row(network, ratio, name, layer.count, scale, shape, by_density, entropy[name], predicted, measured[name]))
    totals = (sum(row[key] for row in rows) for key in ("laplace_bytes", "entropy_bytes", "predicted_bytes", "measured_bytes"))
    return [*rows, _row(network, ratio, TOTAL, sum(row["weights"] for row in rows), None, None, *totals)]


def _laplace_bytes(weight: NDArray[Any], layer: opq.LayerPlan) -> float:
    """Bytes of the codes of a layer under its plan if the weights were exactly Laplace-distributed."""
    scale = opq.functional.measure(weight).laplace_scale
    if scale == 0.0:
        return 0.0
    step, threshold, offset = layer.step, layer.threshold, layer.rounding_offset
    # The first cell reaches from the threshold to the first rounding boundary above it.
    first_cell = (np.floor(threshold / step + offset) + 1.0 - offset) * step - threshold
    return float(laplace.rate(threshold / scale, step / scale, first_cell / scale)) * layer.count / 8.0


def _fit(weight: NDArray[Any]) -> tuple[float, float]:
    """Laplace scale and shape index over all values of `weight`."""
    values = weight.astype(np.float64)
    scale = float(np.abs(values).mean())
    return scale, float(np.sqrt(np.square(values).mean())) / (math.sqrt(2.0) * scale)


def _row(
    network: str,
    ratio: float,
    layer: str,
    weights: int,
    scale: float | None,
    shape_index: float | None,
    by_density: float,
    entropy: float,
    predicted: float,
    measured: int,
) -> Row:
    return {
        "network": network,
        "ratio": ratio,
        "layer": layer,
        "weights": weights,
        "laplace_scale": scale,
        "shape_index": shape_index,
        "laplace_bytes": by_density,
        "entropy_bytes": entropy,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "laplace_error": by_density / entropy - 1.0 if entropy else None,
        "predicted_error": predicted / measured - 1.0,
    }


def _worst(rows: Sequence[Row]) -> list[Row]:
    """The layers of each network with the largest errors of the Laplace prediction."""
    layers = [row for row in rows if row["ratio"] == WORST_RATIO and row["layer"] != TOTAL]
    worst: list[Row] = []
    for network in dict.fromkeys(row["network"] for row in layers):
        mine = [row for row in layers if row["network"] == network]
        worst += sorted(mine, key=lambda row: -abs(row["laplace_error"]))[:WORST_LAYERS]
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
