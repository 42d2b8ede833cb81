"""The rows of `zoo.py` and `unseen.py`: a network's file of each way at its bytes, kept in the benchmark's result file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial

import torch
from harness import Row, keep_row, kept_rows
from zoo_comparison import compare, is_compared, is_target
from zoo_methods import FIXED, SEARCHED, Saved, Tensors, fixed_file, opq_file, searched_ways
from zoo_networks import Network

import opq

ALONE = ("opq", *dict.fromkeys(method for method, _ in FIXED), *SEARCHED)
"""The ways that take nothing but weights."""

_ENOUGH = 0.99
"""Share of another file's bytes that opq is asked for at least."""


def run(
    table: str,
    description: str | None,
    networks: Mapping[str, Callable[[], Network]],
    ways: Sequence[str],
    complete: Callable[[Case, Sequence[str]], None],
) -> int:
    """Make the rows of a benchmark that are missing, as the command line asks, and compare.

    Args:
        table: Name of the benchmark and of its result file.
        description: For --help.
        networks: {name: function that loads it}.
        ways: All ways, in the order of the rows.
        complete: Makes the rows of a network, of some ways.

    Returns:
        The exit status, 1 if opq is behind anywhere.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(networks))
    parser.add_argument("--way", choices=ways, action="append")
    parser.add_argument("--anew", nargs="?", const="all", choices=("all", *ways), help="make rows again")
    arguments = parser.parse_args()
    if unknown := set(arguments.networks) - set(networks):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)

    def place(row: Row) -> tuple[int, int, float]:
        return list(networks).index(row["network"]), ways.index(row["method"]), -row["file_bytes"]

    names = arguments.networks or list(networks)
    for name in names:
        complete(Case(table, networks[name], name, place, arguments.anew), arguments.way or ways)
    return compare([row for row in kept_rows(table) if row["network"] in names])


class Case:
    """A network, and its rows in a result file.

    Args:
        table: Name of the benchmark and of its result file.
        load: Loads the network.
        name: The network's name.
        place: Order of the rows in the file.
        anew: The way whose rows are made again, or "all".
    """

    def __init__(
        self,
        table: str,
        load: Callable[[], Network],
        name: str,
        place: Callable[[Row], tuple[int, int, float]],
        anew: str | None = None,
    ) -> None:
        self.name = name
        self._table, self._load, self._place, self._anew = table, load, place, anew
        self._made: set[tuple[str, str]] = set()

    @cached_property
    def network(self) -> Network:
        """The network, loaded when it is needed."""
        return self._load()

    @cached_property
    def tensors(self) -> Tensors:
        """Its tensors."""
        return Tensors.of(self.network)

    def rows(self) -> list[Row]:
        """Its rows so far, without those that are to be made again."""
        return [row for row in kept_rows(self._table) if row["network"] == self.name and self._is_valid(row)]

    def add(
        self, method: str, setting: str, make: Callable[[], Saved], *, data: str = "none", against: str | None = None
    ) -> None:
        """Make a row, unless the file has it. Another way that fails on the network has none; the reason is printed.

        Args:
            method: The way.
            setting: Its setting, or its target.
            make: Makes the file.
            data: What data it uses.
            against: The way and setting whose bytes opq is asked for.
        """
        if any((row["method"], row["setting"]) == (method, setting) for row in self.rows()):
            return
        try:
            saved = make()
            measured = self.network.assess(saved.state)
        except RuntimeError as error:
            if method.startswith("opq"):
                raise
            print(f"{self.name}, {method}, {setting}: no row: {str(error).strip()[:200]}", file=sys.stderr)
            return
        row = {
            "network": self.name,
            "kind": self.network.kind,
            "measure": self.network.measure_name,
            "higher_is_better": self.network.higher_is_better,
            "method": method,
            "setting": setting,
            "against": against,
            "data": data,
            "asked_bytes": saved.asked,
            "bits": 8.0 * len(saved.data) / self.tensors.count,
            "file_bytes": len(saved.data),
            "value": measured.value,
            "dense": measured.value - measured.change,
            "change": measured.change,
            "change_error": measured.change_error,
            "divergence": measured.divergence,
            "seconds": saved.seconds,
        }
        self._made.add((method, setting))
        command = [f"{self._table}.py", self.name, "--way", method, "--anew", method]
        keys = ("network", "method", "setting")
        keep_row(self._table, row, keys, self._place, command=command, seed=0, libraries=("torch",))

    def _is_valid(self, row: Row) -> bool:
        return self._anew not in ("all", row["method"]) or (row["method"], row["setting"]) in self._made

    def add_alone(self, targets: Sequence[str], ways: Collection[str], more_of_opq: Sequence[str] = ()) -> None:
        """Make the missing rows of the ways that take nothing but weights.

        Args:
            targets: Three sizes of a file, the largest first, as `bytes_of` takes them.
            ways: The ways, of ALONE.
            more_of_opq: Further targets of opq.
        """
        for (method, setting), weight_format in FIXED.items():
            if method in ways:
                self.add(method, setting, partial(lambda way: fixed_file(self.tensors, way), weight_format))
        with searched_ways(lambda: self.tensors) as run:
            for method in SEARCHED:
                for target in targets:
                    if method in ways:
                        self.add(method, target, partial(lambda *asked: run(asked[0], self.bytes_of(asked[1])), method, target))
        if "opq" in ways:
            self._add_opq(tuple(dict.fromkeys((*targets, *more_of_opq))))

    def _add_opq(self, targets: Sequence[str]) -> None:
        """The rows of opq at the targets, and at the bytes of each other file that is compared."""

        def of_opq(target: str | int) -> Saved:
            return opq_file(self.tensors, self.bytes_of(target))

        for target in targets:
            self.add("opq", target, partial(of_opq, target))
        rows = self.rows()
        asked = [row["asked_bytes"] for row in rows if is_target(row)]
        for row in sorted(rows, key=lambda row: row["file_bytes"]):
            size = row["file_bytes"]
            if (
                row["method"].startswith("opq")
                or not is_compared(row, rows)
                or any(_ENOUGH * size <= other <= size for other in asked)
            ):
                continue
            asked.append(size)
            try:
                self.add("opq", f"{size:,} bytes", partial(of_opq, size), against=f"{row['method']}, {row['setting']}")
            except opq.TargetError as error:
                print(f"{self.name}, {size:,} bytes: {error}", file=sys.stderr)

    def bytes_of(self, target: str | int) -> int:
        """The bytes of a target: times smaller than the source ("8x"), bits per weight ("3 bits"), kB or MB, or bytes."""
        if isinstance(target, int):
            return target
        if target.endswith("x"):
            return int(self.tensors.dense_bytes / float(target[:-1]))
        number, unit = target.split()
        return int(float(number) * {"bits": self.tensors.count / 8.0, "kB": 1e3, "MB": 1e6}[unit])
