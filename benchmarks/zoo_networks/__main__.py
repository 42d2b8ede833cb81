"""Measure each network, dense and compressed.

Run with `cd benchmarks && OMP_NUM_THREADS=1 python -m zoo_networks [--ratio 8] [NAME ...]`.
"""

from __future__ import annotations

import argparse
import time

import torch
from harness import Row, print_rows

import opq
import opq.torch
from zoo_networks import NETWORKS


def main() -> None:
    """Print a row for each network. Seconds are those of the processor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--ratio", type=float, default=8.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names:
        print_rows([_row(name, arguments.ratio)])


def _row(name: str, ratio: float) -> Row:
    start = time.process_time()
    network = NETWORKS[name]()
    loaded = time.process_time()
    dense = network.assess()
    source = network.source()
    compressed = opq.compress(source, ratio=ratio)
    state = opq.torch.load(compressed.data)
    begin = time.process_time()
    measured = network.assess(state)
    end = time.process_time()
    return {
        "network": name,
        "weights": compressed.num_weights,
        "source MB": sum(tensor.nbytes for tensor in {tensor.data_ptr(): tensor for tensor in source.values()}.values()) / 1e6,
        "measure": network.measure_name,
        "dense": dense.value,
        "± dense": dense.standard_error,
        f"at ratio {ratio:g}": measured.value,
        "change": measured.change,
        "± change": measured.change_error,
        "divergence": measured.divergence,
        "load s": loaded - start,
        "measure s": end - begin,
    }


main()
