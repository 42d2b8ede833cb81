"""A small file of each tool whose network is as good as the dense one, on the same images.

What it tells: at most MAX_DROP points of top-1 under the dense network on the test images, what is the smallest file of opq,
NNCodec with and without its own sparsification and tuning, NNCF's pruning with 8-bit integers, torchao, k-means codebooks, and
pruning with integers as torch users do it?

    python benchmarks/peers.py [--network NAME]... [--way NAME]...

Each tool's own knob is walked from where it is likely to end: the file in the row is within, and the PATIENCE next coarser
settings were seen to be beyond. One would not do, as top-1 jumps by some tenths from one setting to the next; a file beyond
those three may be within again. Where none is within, all up to where the walk began were tried, and the row is the nearest.
Where a tool has two knobs, one is walked at each of a few values of the other.
All test images count at every step: 10,000 of CIFAR-10 (JPEG) for ResNet-20, 1,300 of ImageNet's validation set for MobileNet.

file_bytes    what the tool writes, as its user saves it
packed_bytes  the same after gzip, bzip2 or xz, whichever is smallest, or as it is where none makes it smaller
data          "none": the weights, or inputs drawn at random; "unlabelled": calibrated with some training images; "labelled":
              trained with as many. What sees training images gets used to them: the dense network was trained on others
drop, error   points of top-1 under dense, and the standard error of that difference, image by image

A row is put into results/peers.json as soon as it is done, in place of an earlier one.
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
from peers_ways import WAYS, Saved, Way, packed
from torch import Tensor

NETWORKS = ("resnet20", "mobilenet")
MAX_DROP = 1.0
PATIENCE = 3


def main() -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--way", choices=list(WAYS), action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    rows: list[Row] = []
    for name in arguments.network or NETWORKS:
        for way in (way for way in arguments.way or WAYS if WAYS[way].ladders(name)):
            rows = keep_row(
                "peers",
                smallest(name, way),
                ("network", "way"),
                _place,
                command=["peers.py", "--network", name, "--way", way],
                seed=0,
                libraries=("torch",),
            )
    print_rows(rows)
    return 0


def _place(row: Row) -> tuple[int, int]:
    return NETWORKS.index(row["network"]), list(WAYS).index(row["way"])


def smallest(name: str, way: str) -> Row:
    """The row of the smallest file within, or of the best one where none is."""
    start = time.perf_counter()
    found: list[Row] = []
    for settings, first in WAYS[way].ladders(name):
        rows: dict[int, Row] = {}

        def within(rung: int, settings: list[Any] = settings, rows: dict[int, Row] = rows) -> bool:
            row = _row(name, way, WAYS[way], settings[rung])
            if row is None:
                return False
            print_rows([row])
            rows[rung] = row
            return bool(row["drop"] <= MAX_DROP)

        last_within(len(settings), first, within)
        found += rows.values()
    good = [row for row in found if row["drop"] <= MAX_DROP]
    best = min(good, key=lambda row: row["packed_bytes"]) if good else min(found, key=lambda row: row["drop"])
    return {**best, "within": bool(good), "tried": len(found), "seconds": time.perf_counter() - start}


def last_within(rungs: int, first: int, within: Callable[[int], bool]) -> int:
    """A rung that is `within` and has PATIENCE rungs after it, or all, that are not; -1 where none up to `first` is.

    From `first` down in growing strides until one is within, and where none is, one by one over what they left out; then up.
    """
    known: dict[int, bool] = {}

    def ask(rung: int) -> bool:
        if rung not in known:
            known[rung] = within(rung)
        return known[rung]

    strides = [first + 1 - (1 << turn) for turn in range((first + 1).bit_length())]
    last = next((rung for rung in [*strides, 0, *range(first, 0, -1)] if ask(rung)), -1)
    if last < 0:
        return -1
    place = last + 1
    while place < min(last + PATIENCE + 1, rungs):
        if ask(place):
            last = place
        place += 1
    return last


def _row(name: str, title: str, way: Way, setting: Any) -> Row | None:
    network = network_of(name)
    dense = network.logits
    saved = way.run(name, setting)
    if saved is None:
        return None
    logits = saved.logits if saved.logits is not None else _logits(name, saved)
    dense_bytes = sum(tensor.nbytes for tensor in network.tensors.values())
    dense_hits, hits = ((answer.argmax(1) == network.labels).double() for answer in (dense, logits))
    packed_bytes = packed(saved.data)
    return {
        "network": name,
        "way": title,
        "tool": way.tool(),
        "data": way.data,
        "setting": "/".join(f"{value:g}" if isinstance(value, float) else f"{value}" for value in setting),
        "saved_as": way.saved_as,
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
    """Of the network with the weights that came back; in float32, as those of the peers that bring their own."""
    model = fresh(name)
    model.load_state_dict({key: torch.tensor(value) for key, value in saved.tensors.items()}, strict=False)
    return logits_of(model.eval(), network_of(name).inputs)


if __name__ == "__main__":
    raise SystemExit(main())
