"""Networks of eleven kinds made small from their weights alone: the quality of each way's file, at its whole bytes.

Checks the claim that at equal bytes no way of this list gives a better network than opq with its default settings.

    python benchmarks/zoo.py [NETWORK ...] [--way NAME]... [--anew [WAY]]

The networks are those of `zoo_networks` (`make zoo-packages`). Two ways of opq use inputs: "opq, calibrated" those of
`zoo_networks.calibration_inputs`, which GPTQ uses too, and "opq, synthetic" those that `opq.calibrate` makes. Tensors that
opq quantizes are those that all ways quantize, and equal ones are stored once. Ways whose settings determine their size
(`zoo_methods.FIXED`: integers in xz, HQQ and SINQ by their packages) have a row for each setting. Ways whose size can be chosen
have a row for each of three targets: rounding with a step per row, entropy coded, and NNCodec with uniform and with dependent
quantization (`make peers`). opq is run at the targets, and at the bytes of each other file between half of the smallest target
and 1.5 times the largest, unless it was run at no more bytes and at least 99% of them already.

Every measure is that of the network read from the file. Rows that are in benchmarks/results/zoo.json are kept; with `--anew`
they are made again, all of them or those of one way. With `--way` only this way is run. In the end each file is compared with
opq's at its bytes, and each with inputs with that without; the exit status is 1 if opq, or opq with inputs, is worse by more
than two standard errors anywhere. The error of a difference is the root of the sum of both squared errors, each that of the
change from the dense network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from harness import Row, keep_row, kept_rows
from zoo_comparison import compare, is_compared, is_target
from zoo_formats import WeightFormat
from zoo_gptq import Compensated, input_moments
from zoo_methods import FIXED, SEARCHED, Saved, Tensors, calibrated_file, fixed_file, opq_file, searched_ways
from zoo_networks import NETWORKS, Network
from zoo_networks.calibration_inputs import SHAPES, calibration_inputs

import opq

TARGETS = {
    "resnet20": ("10x", "14.5x", "24x"),
    "resnet56": ("12x", "16x", "26x"),
    "mobilenet": ("5.1x", "7.7x", "10x"),
    "efficientnet_lite0": ("6x", "8x", "10x"),
    "minilm": ("8.2x", "10.7x", "14.5x"),
    "wordllama": ("4 bits", "3 bits", "2.41 MB"),
    "silero_vad": ("4 bits", "104 kB", "2.2 bits"),
    "fcpe": ("4 bits", "3 bits", "2.2 bits"),
    "smollm2": ("4 bits", "3 bits", "2.2 bits"),
    "gpt5m": ("4 bits", "3 bits", "2.2 bits"),
    "lstm": ("4 bits", "3 bits", "2.2 bits"),
}
"""{network: three sizes of a file, the largest first}: times smaller than the source, bits per weight, or bytes."""

CALIBRATED_TARGETS = {
    "efficientnet_lite0": ("8x", "10x", "12x"),
    "minilm": ("4 bits", "3 bits", "2 bits"),
    "smollm2": ("4 bits", "3 bits", "2.5 bits"),
}
"""As TARGETS, of the ways with inputs, for networks with other targets than in TARGETS; opq is run at these too."""

WITH_INPUTS = {"opq, calibrated": "inputs", "opq, synthetic": "synthetic"}
"""{way of opq: data that it uses}"""

GPTQ = {f"{bits} bits{coded}": (bits, bool(coded)) for bits in (4, 3) for coded in ("", ", coded")}
"""{setting of GPTQ, on the inputs of "opq, calibrated": bits of a code, and whether codes are entropy coded}"""

BY_GPTQ = ("minilm", "smollm2", "gpt5m")
"""Networks of linear layers."""

WAYS = ("opq", *WITH_INPUTS, "gptq", *dict.fromkeys(method for method, _ in FIXED), *SEARCHED)

_ENOUGH = 0.99
"""Share of another file's bytes that opq is asked for at least."""


def main() -> int:
    """Make the rows that are missing, and compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--anew", nargs="?", const="all", choices=("all", *WAYS), help="make rows again")
    arguments = parser.parse_args()
    if unknown := set(arguments.networks) - set(NETWORKS):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    names = arguments.networks or list(NETWORKS)
    made: set[tuple[Any, ...]] = set()
    for name in names:
        _complete(Case(name, arguments.anew, made), arguments.way or WAYS)
    return compare([row for row in kept_rows("zoo") if row["network"] in names])


class Case:
    """A network, and its rows in the result file.

    Args:
        name: As in `NETWORKS`.
        anew: The way whose rows are made again, or "all".
        made: The rows that this process has made; those are not made again.
    """

    def __init__(self, name: str, anew: str | None, made: set[tuple[Any, ...]]) -> None:
        self.name, self._anew, self._made = name, anew, made
        self._network: Network | None = None
        self._tensors: Tensors | None = None
        self._calibrations: dict[str, opq.Calibration] = {}

    @property
    def network(self) -> Network:
        """The network, loaded when it is needed."""
        self._network = self._network or NETWORKS[self.name]()
        return self._network

    @property
    def tensors(self) -> Tensors:
        """Its tensors."""
        self._tensors = self._tensors or Tensors.of(self.network)
        return self._tensors

    def calibration(self, method: str) -> opq.Calibration:
        """The calibration of one of WITH_INPUTS."""
        if method not in self._calibrations:
            print(f"{self.name}: {method}", file=sys.stderr)
            inputs = calibration_inputs(self.name) if WITH_INPUTS[method] == "inputs" else None
            shape = SHAPES.get(self.name) if inputs is None else None
            self._calibrations[method] = opq.calibrate(self.network.module, inputs, shape=shape)
        return self._calibrations[method]

    def rows(self) -> list[Row]:
        """Its rows so far, without those that are to be made again."""
        return [row for row in kept_rows("zoo") if row["network"] == self.name and self._is_valid(row)]

    def add(self, method: str, setting: str, make: Callable[[], Saved], against: str | None = None) -> None:
        """Make a row, unless the file has it. `against` is the way and setting whose bytes opq is asked for."""
        key = (self.name, method, setting)
        if any((row["method"], row["setting"]) == (method, setting) for row in self.rows()):
            return
        saved = make()
        measured = self.network.assess(saved.state)
        row = {
            "network": self.name,
            "kind": self.network.kind,
            "measure": self.network.measure_name,
            "higher_is_better": self.network.higher_is_better,
            "method": method,
            "setting": setting,
            "against": against,
            "data": WITH_INPUTS.get(method, "inputs" if method == "gptq" else "none"),
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
        self._made.add(key)
        command = ["zoo.py", self.name, "--way", method, "--anew", method]
        keep_row("zoo", row, ("network", "method", "setting"), _place, command=command, seed=0, libraries=("torch",))

    def _is_valid(self, row: Row) -> bool:
        return self._anew not in ("all", row["method"]) or (row["network"], row["method"], row["setting"]) in self._made


def _complete(case: Case, ways: Sequence[str]) -> None:
    """Make all rows of a network that are missing."""
    for (method, setting), weight_format in FIXED.items():
        if method in ways:
            case.add(method, setting, partial(_fixed, case, weight_format))
    with searched_ways(lambda: case.tensors) as run:
        for method in SEARCHED:
            for target in TARGETS[case.name]:
                if method in ways:
                    case.add(method, target, partial(_searched, case, run, method, target))
    calibrated_targets = CALIBRATED_TARGETS.get(case.name, TARGETS[case.name])
    for method in WITH_INPUTS:
        for target in calibrated_targets:
            if method in ways:
                case.add(method, target, partial(_calibrated, case, method, target))
    if "gptq" in ways and case.name in BY_GPTQ:
        _complete_gptq(case)
    if "opq" not in ways:
        return
    for target in dict.fromkeys((*TARGETS[case.name], *calibrated_targets)):
        case.add("opq", target, partial(_of_opq, case, target))
    rows = case.rows()
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
            against = f"{row['method']}, {row['setting']}"
            case.add("opq", f"{size:,} bytes", partial(_of_opq, case, size), against)
        except opq.TargetError as error:
            print(f"{case.name}, {size:,} bytes: {error}", file=sys.stderr)


def _complete_gptq(case: Case) -> None:
    """GPTQ's rows, and those of opq with the same inputs at their bytes."""
    for setting, (bits, coded) in GPTQ.items():
        case.add("gptq", setting, partial(_of_gptq, case, bits, coded))
    for row in case.rows():
        if row["method"] == "gptq":
            size, against = row["file_bytes"], f"gptq, {row['setting']}"
            case.add("opq, calibrated", f"{size:,} bytes", partial(_calibrated, case, "opq, calibrated", size), against)


def _of_gptq(case: Case, bits: int, coded: bool) -> Saved:
    calibration = case.calibration("opq, calibrated")
    moments = input_moments(calibration.reference, calibration.inputs)
    names = {weight.ctypes.data: name for name, weight in case.tensors.weights.items()}
    return fixed_file(case.tensors, Compensated(bits, coded, moments, names))


def _fixed(case: Case, weight_format: WeightFormat) -> Saved:
    return fixed_file(case.tensors, weight_format)


def _searched(case: Case, run: Callable[[str, int], Saved], way: str, target: str) -> Saved:
    return run(way, bytes_of(target, case.tensors))


def _of_opq(case: Case, target: str | int) -> Saved:
    return opq_file(case.tensors, target if isinstance(target, int) else bytes_of(target, case.tensors))


def _calibrated(case: Case, method: str, target: str | int) -> Saved:
    size = target if isinstance(target, int) else bytes_of(target, case.tensors)
    return calibrated_file(case.calibration(method), size)


def bytes_of(target: str, tensors: Tensors) -> int:
    """The bytes that a target of TARGETS means for a network."""
    if target.endswith("x"):
        return int(tensors.dense_bytes / float(target[:-1]))
    number, unit = target.split()
    return int(float(number) * {"bits": tensors.count / 8.0, "kB": 1e3, "MB": 1e6}[unit])


def _place(row: Row) -> tuple[int, int, float]:
    return list(NETWORKS).index(row["network"]), WAYS.index(row["method"]), -row["file_bytes"]


if __name__ == "__main__":
    raise SystemExit(main())
