"""Accuracy against the bytes of the whole file, before any finetuning, for several methods.

Claim: at equal file bytes, networks compressed by opq, from the weights alone or calibrated, lose fewer points of top-1 than
networks compressed by NNCodec 2.1.3, or by pruning and integer quantization as PyTorch users do it. The two-stage mode, which
is meant for training afterwards, is included.

    python benchmarks/allocation.py [--network NAME]... [--method NAME]... [--setting X]... [--anew]

Rows that are in benchmarks/results/allocation.json already are not measured again, so that an interrupted run resumes; with
--anew they are. Without --network and --method all are run. The plot is benchmarks/results/allocation.png.

Images: CIFAR-10 (JPEG) test images for the ResNets, 1,300 ImageNet validation images for MobileNet (benchmarks/README.md).
Every accuracy is that of the network read from the file, and is compared with the dense network's on the same images. Files of
pruning with integers or k-means are gzip of a safetensors file with int8 (or packed int4) weights, scales, and all other
tensors in float32.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np
import torch
from allocation_methods import METHODS, RATIOS, Run
from allocation_networks import fresh, logits_of, network_of
from harness import RESULTS, Row, keep_row, kept_rows, print_rows
from readme_tables import METHODS as METHOD_NAMES
from readme_tables import NETWORKS
from torch import Tensor


def main() -> int:
    """Measure the rows that are missing; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(RATIOS), action="append")
    parser.add_argument("--method", choices=list(METHODS), action="append")
    parser.add_argument("--setting", action="append", help="as it is named in the result file")
    parser.add_argument("--anew", action="store_true", help="also measure rows that the result file has already")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    rows = kept_rows("allocation")
    done = set() if arguments.anew else {(row["network"], row["method"], row["setting"]) for row in rows}
    for name in arguments.network or RATIOS:
        for method in arguments.method or METHODS:
            data, settings, run = METHODS[method]
            for setting in settings(name):
                text = label(setting)
                if (arguments.setting is not None and text not in arguments.setting) or (name, method, text) in done:
                    continue
                rows = keep_row(
                    "allocation",
                    _row(name, method, data, setting, run),
                    ("network", "method", "setting"),
                    _place,
                    command=["allocation.py", "--anew", "--network", name, "--method", method, f"--setting={text}"],
                    seed=0,
                    libraries=("torch",),
                )
    print_rows(rows)
    if rows:
        _draw(rows)
    return 0


def _row(name: str, method: str, data: str, setting: Any, run: Run) -> Row:
    network = network_of(name)
    start = time.perf_counter()
    file_bytes, tensors = run(name, setting)
    seconds = time.perf_counter() - start
    model = fresh(name)
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}, strict=False)
    logits = logits_of(model.eval(), network.inputs)
    dense_bytes = sum(tensor.nbytes for tensor in network.tensors.values())
    return {
        "network": name,
        "method": method,
        "data": data,
        "setting": label(setting),
        "file_bytes": file_bytes,
        "file_ratio": dense_bytes / file_bytes,
        "dense_top1": _share(network.logits.argmax(1) == network.labels),
        "top1": _share(logits.argmax(1) == network.labels),
        "agreement": _share(logits.argmax(1) == network.logits.argmax(1)),
        "seconds": seconds,
        "images": len(network.labels),
    }


def _share(hits: Tensor) -> float:
    return 100.0 * float(hits.float().mean())


def label(setting: Any) -> str:
    """The name of a method's setting in the result file."""
    return "/".join(f"{value:g}" for value in setting) if isinstance(setting, tuple) else f"{setting:g}"


def _place(row: Row) -> tuple[int, str, int]:
    return list(RATIOS).index(row["network"]), row["method"], -row["file_bytes"]


def _draw(rows: list[Row]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    networks = [name for name in RATIOS if any(row["network"] == name for row in rows)]
    colours = pyplot.colormaps["tab20"]
    figure, panels = pyplot.subplots(1, len(networks), figsize=(6 * len(networks), 5), squeeze=False)
    for panel, name in zip(panels[0], networks, strict=True):
        for number, method in enumerate(METHODS):
            points = sorted(
                (row["file_bytes"], row["top1"]) for row in rows if (row["network"], row["method"]) == (name, method)
            )
            if points:
                panel.plot(
                    *zip(*points, strict=True), marker="o", markersize=3, label=METHOD_NAMES[method], color=colours(number)
                )
        panel.axhline(next(row["dense_top1"] for row in rows if row["network"] == name), color="grey", linewidth=0.8)
        panel.set(title=NETWORKS[name], xlabel="file bytes", ylabel="top-1, %", xscale="log")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / "allocation.png", dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
