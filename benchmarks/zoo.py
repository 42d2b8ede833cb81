"""Networks of eleven kinds made small from their weights alone: the quality of each way's file, at its whole bytes.

Checks the claim that at equal bytes no way of this list gives a better network than opq with its defaults; docs/limits.md
names exceptions.

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

import sys
from collections.abc import Sequence
from functools import partial

from zoo_gptq import Compensated, input_moments
from zoo_methods import Saved, calibrated_file, fixed_file
from zoo_networks import NETWORKS
from zoo_networks.calibration_inputs import SHAPES, calibration_inputs
from zoo_rows import ALONE, Case, run

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

WAYS = ("opq", *WITH_INPUTS, "gptq", *ALONE[1:])


def _complete(case: Case, ways: Sequence[str]) -> None:
    """Make all rows of a network that are missing."""
    targets = CALIBRATED_TARGETS.get(case.name, TARGETS[case.name])
    calibrations = Calibrations(case)
    for method, data in WITH_INPUTS.items():
        for target in targets:
            if method in ways:
                case.add(method, target, partial(calibrations.file, method, case.bytes_of(target)), data=data)
    if "gptq" in ways and case.name in BY_GPTQ:
        _complete_gptq(case, calibrations)
    case.add_alone(TARGETS[case.name], ways, targets)


def _complete_gptq(case: Case, calibrations: Calibrations) -> None:
    """GPTQ's rows, and those of opq with the same inputs at their bytes."""
    method = "opq, calibrated"
    for setting, (bits, coded) in GPTQ.items():
        case.add("gptq", setting, partial(_of_gptq, case, calibrations, bits, coded), data="inputs")
    for row in case.rows():
        if row["method"] == "gptq":
            size, against = row["file_bytes"], f"gptq, {row['setting']}"
            case.add(method, f"{size:,} bytes", partial(calibrations.file, method, size), data="inputs", against=against)


def _of_gptq(case: Case, calibrations: Calibrations, bits: int, coded: bool) -> Saved:
    calibration = calibrations["opq, calibrated"]
    moments = input_moments(calibration.reference, calibration.inputs)
    names = {weight.ctypes.data: name for name, weight in case.tensors.weights.items()}
    return fixed_file(case.tensors, Compensated(bits, coded, moments, names))


class Calibrations(dict[str, opq.Calibration]):
    """{one of WITH_INPUTS: the calibration of a network}, made when they are needed."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case

    def __missing__(self, method: str) -> opq.Calibration:
        name = self._case.name
        print(f"{name}: {method}", file=sys.stderr)
        inputs = calibration_inputs(name) if WITH_INPUTS[method] == "inputs" else None
        shape = SHAPES.get(name) if inputs is None else None
        self[method] = opq.calibrate(self._case.network.module, inputs, shape=shape)
        return self[method]

    def file(self, method: str, size: int) -> Saved:
        """A file of at most so many bytes."""
        return calibrated_file(self[method], size)


if __name__ == "__main__":
    raise SystemExit(run("zoo", __doc__, NETWORKS, WAYS, _complete))
