"""Networks that nobody tuned opq on, made small with its default settings, beside the other ways at their bytes.

Checks the claim that opq works beyond the networks it was made on.

    python benchmarks/unseen.py [NETWORK ...] [--way NAME]... [--anew [WAY]]

The networks are those of `unseen_networks` (`make unseen-packages`). Ways, targets, rows and the comparison are those of
`zoo.py`, without the ways that take inputs. Graph and integers of a model are in no file. Once a figure was looked at, a change
of opq's defaults makes a network a seen one; docs/log.md says when that happened.
"""

from __future__ import annotations

from collections.abc import Sequence

from unseen_networks import NETWORKS
from zoo_rows import ALONE, Case, run

TARGETS = ("4 bits", "3 bits", "2.2 bits")
"""Bytes of the whole file, in bits per weight, of every network."""


def _complete(case: Case, ways: Sequence[str]) -> None:
    case.add_alone(TARGETS, ways)


if __name__ == "__main__":
    raise SystemExit(run("unseen", __doc__, NETWORKS, ALONE, _complete))
