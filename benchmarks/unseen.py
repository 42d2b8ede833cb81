"""Networks that nobody tuned opq on, made small with its default settings, beside the other ways at their bytes.

Checks the claim that opq works beyond the networks it was made on.

    python benchmarks/unseen.py [NETWORK ...] [--way NAME]... [--anew [WAY]]

The networks are those of `unseen_networks` (`make unseen-packages`). Ways, targets, rows and the comparison are those of
`zoo.py`, without the ways that take inputs. Once a figure was looked at, a change of opq's defaults makes a network a seen one;
docs/log.md says when that happened.
"""

from __future__ import annotations

import argparse

import torch
from harness import Row, kept_rows
from unseen_networks import NETWORKS
from zoo_comparison import compare
from zoo_rows import ALONE, Case

TARGETS = ("4 bits", "3 bits", "2.2 bits")
"""Bytes of the whole file, in bits per weight, of every network."""


def main() -> int:
    """Make the rows that are missing, and compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--way", choices=ALONE, action="append")
    parser.add_argument("--anew", nargs="?", const="all", choices=("all", *ALONE), help="make rows again")
    arguments = parser.parse_args()
    if unknown := set(arguments.networks) - set(NETWORKS):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    names = arguments.networks or list(NETWORKS)
    for name in names:
        Case("unseen", NETWORKS[name], name, _place, arguments.anew).add_alone(TARGETS, arguments.way or ALONE)
    return compare([row for row in kept_rows("unseen") if row["network"] in names])


def _place(row: Row) -> tuple[int, int, float]:
    return list(NETWORKS).index(row["network"]), ALONE.index(row["method"]), -row["file_bytes"]


if __name__ == "__main__":
    raise SystemExit(main())
