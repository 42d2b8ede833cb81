"""How well a file's bytes are predicted before it is written, layer by layer.

Claim: the Laplace density tells the entropy of the codes of most layers to a few percent, and errs by far more in layers that
do not follow it; the plan, which measures magnitudes and what contexts save, predicts the file within a few percent.

    python benchmarks/laplace_fit.py

Every layer of three networks at file ratios 4, 10, 20 and 40; the row "(total)" adds them up.

laplace_bytes    bytes of the layer's codes if its weights were exactly Laplace with its mean magnitude
entropy_bytes    zero-order entropy of the layer's codes
predicted_bytes  bytes that the plan predicts, from a sample of the magnitudes and excerpts of some layers
measured_bytes   bytes of the layer's section in the file made by this plan
laplace_error    relative to entropy_bytes, as both know nothing of a weight's neighbours
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

TOTAL = "(total)"
WORST_RATIO, WORST_LAYERS = 20.0, 5


def main() -> int:
    """Compare every network at every ratio; the exit status."""
    rows: list[Row] = []
    for network, path in checkpoints().items():
        tensors = load(path)
        for ratio in RATIOS:
            plan = opq.plan(tensors, ratio=ratio, rounding="plain")
            rows += _compare(network, ratio, tensors, opq.compress(tensors, plan=plan))
    print_rows([row for row in rows if row["layer"] == TOTAL])
    print(f"\nThe {WORST_LAYERS} layers of each network that the Laplace density predicts worst, at ratio {WORST_RATIO:g}:")
    print_rows(_worst(rows))
    save_result("laplace_fit", rows, seed=None)
    return 0


def _compare(network: str, ratio: float, tensors: dict[str, NDArray[Any]], compressed: opq.CompressedModel) -> list[Row]:
    """A row for each layer, and their total."""
    rows = []
    with opq.OpqFile(compressed.data) as file:
        measured = {entry.name: file.section_bytes(entry.section) for entry in file.entries}
        entropy = {name: entropy_bytes(file[name].codes) for name in compressed.plan.layers}
    for name, layer in compressed.plan.layers.items():
        laplace, predicted = layer.laplace_bits * layer.count / 8.0, layer.bits * layer.count / 8.0
        scale, shape = _fit(tensors[name])
        rows.append(_row(network, ratio, name, layer.count, scale, shape, laplace, entropy[name], predicted, measured[name]))
    totals = (sum(row[key] for row in rows) for key in ("laplace_bytes", "entropy_bytes", "predicted_bytes", "measured_bytes"))
    return [*rows, _row(network, ratio, TOTAL, sum(row["weights"] for row in rows), None, None, *totals)]


def _fit(weight: NDArray[Any]) -> tuple[float, float]:
    """Laplace scale and shape index, over every value of `weight`."""
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
    laplace: float,
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
        "laplace_bytes": laplace,
        "entropy_bytes": entropy,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "laplace_error": laplace / entropy - 1.0 if entropy else None,
        "predicted_error": predicted / measured - 1.0,
    }


def _worst(rows: Sequence[Row]) -> list[Row]:
    """The layers of each network whose Laplace prediction errs most."""
    layers = [row for row in rows if row["ratio"] == WORST_RATIO and row["layer"] != TOTAL]
    worst: list[Row] = []
    for network in dict.fromkeys(row["network"] for row in layers):
        mine = [row for row in layers if row["network"] == network]
        worst += sorted(mine, key=lambda row: -abs(row["laplace_error"]))[:WORST_LAYERS]
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
