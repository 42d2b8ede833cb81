"""The smallest file of each tool whose network loses at most MAX_DROP points of top-1, on the same images.

It compares opq, NNCodec with and without its own sparsification and tuning, NNCF's pruning with 8-bit integers, torchao,
k-means codebooks, and pruning with integers as PyTorch users do it.

    python benchmarks/peers.py [--network NAME]... [--method NAME]...

Each tool has one parameter that controls the size. The search starts at a likely value and ends at a setting within MAX_DROP
of which the next PATIENCE coarser settings are not. One would not be enough, because top-1 varies by some tenths from one
setting to the next; a still coarser setting may be within again. If no setting is within, all settings up to the first one
were tried, and the row is the nearest. If a tool has two parameters, one is searched at a few values of the other. Every
setting is evaluated on all test images: 10,000 of CIFAR-10 (JPEG) for ResNet-20, 1,300 of ImageNet's validation set for
MobileNet.

way           the method; benchmarks/readme_tables.py translates its name for tables
file_bytes    the file that the tool's user saves
packed_bytes  the same after gzip, bzip2 or xz, whichever is smallest, or as it is if none makes it smaller
data          "none": the weights alone, or synthetic inputs; "unlabelled": calibrated with some training images; "labelled":
              trained with as many. Methods that use these images adapt to them: the dense network was trained on other images
drop, error   points of top-1 below the dense network, and the standard error of this difference, image by image

A row is saved in results/peers.json as soon as it is measured; it replaces an earlier one.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from allocation_networks import fresh, logits_of, network_of
from harness import Row, keep_row, print_rows
from peers_methods import METHODS, Method, Saved, packed
from torch import Tensor

NETWORKS = ("resnet20", "mobilenet")
MAX_DROP = 1.0
PATIENCE = 3


def main() -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--method", "--way", choices=list(METHODS), action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    rows: list[Row] = []
    for name in arguments.network or NETWORKS:
        for method in (title for title in arguments.method or METHODS if METHODS[title].searches(name)):
            rows = keep_row(
                "peers",
                smallest(name, method),
                ("network", "way"),
                _place,
                command=["peers.py", "--network", name, "--method", method],
                seed=0,
                libraries=("torch",),
            )
    print_rows(rows)
    return 0


def _place(row: Row) -> tuple[int, int]:
    return NETWORKS.index(row["network"]), list(METHODS).index(row["way"])


def smallest(name: str, title: str) -> Row:
    """The row of the smallest file within MAX_DROP, or of the nearest one if none is."""
    start = time.perf_counter()
    found: list[Row] = []
    for settings, first in METHODS[title].searches(name):
        rows: dict[int, Row] = {}

        def within(number: int, settings: list[Any] = settings, rows: dict[int, Row] = rows) -> bool:
            row = _row(name, title, METHODS[title], settings[number])
            if row is None:
                return False
            print_rows([row])
            rows[number] = row
            return bool(row["drop"] <= MAX_DROP)

        last_within(len(settings), first, within)
        found += rows.values()
    good = [row for row in found if row["drop"] <= MAX_DROP]
    best = min(good, key=lambda row: row["packed_bytes"]) if good else min(found, key=lambda row: row["drop"])
    return {**best, "within": bool(good), "tried": len(found), "seconds": time.perf_counter() - start}


def last_within(count: int, first: int, within: Callable[[int], bool]) -> int:
    """A setting that is `within` and is followed by PATIENCE settings, or by settings to the end, that are not.

    The search goes from `first` down in growing strides until a setting is within. If none is, it tries the settings that were
    left out. Then it goes up.

    Args:
        count: Number of settings, from the finest to the coarsest.
        first: The setting to try first.
        within: Whether a setting loses at most MAX_DROP points.

    Returns:
        The setting, or -1 if none up to `first` is within.
    """
    known: dict[int, bool] = {}

    def ask(setting: int) -> bool:
        if setting not in known:
            known[setting] = within(setting)
        return known[setting]

    strides = [first + 1 - (1 << turn) for turn in range((first + 1).bit_length())]
    last = next((setting for setting in [*strides, 0, *range(first, 0, -1)] if ask(setting)), -1)
    if last < 0:
        return -1
    place = last + 1
    while place < min(last + PATIENCE + 1, count):
        if ask(place):
            last = place
        place += 1
    return last


def _row(name: str, title: str, method: Method, setting: Any) -> Row | None:
    network = network_of(name)
    dense = network.logits
    saved = method.run(name, setting)
    if saved is None:
        return None
    logits = saved.logits if saved.logits is not None else _logits(name, saved)
    dense_bytes = sum(tensor.nbytes for tensor in network.tensors.values())
    dense_hits, hits = ((answer.argmax(1) == network.labels).double() for answer in (dense, logits))
    packed_bytes = packed(saved.data)
    return {
        "network": name,
        "way": title,
        "tool": method.tool(),
        "data": method.data,
        "setting": "/".join(f"{value:g}" if isinstance(value, float) else f"{value}" for value in setting),
        "saved_as": method.saved_as,
        "file_bytes": len(saved.data),
        "packed_bytes": packed_bytes,
        "file_ratio": dense_bytes / len(saved.data),
        "packed_ratio": dense_bytes / packed_bytes,
        "dense_top1": 100.0 * float(dense_hits.mean()),
        "top1": 100.0 * float(hits.mean()),
        "drop": 100.0 * float((dense_hits - hits).sum()) / len(hits),
        "error": 100.0 * float((dense_hits - hits).std()) / math.sqrt(len(hits)),
        "agreement": 100.0 * float((logits.argmax(1) == dense.argmax(1)).double().mean()),
        "images": len(hits),
    }


def _logits(name: str, saved: Saved) -> Tensor:
    """Logits of the network with the weights read back, in float32, like those of the tools that compute their own."""
    model = fresh(name)
    model.load_state_dict({key: torch.tensor(value) for key, value in saved.tensors.items()}, strict=False)
    return logits_of(model.eval(), network_of(name).inputs)


if __name__ == "__main__":
    raise SystemExit(main())
