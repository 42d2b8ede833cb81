"""What the README and docs/results.md make of the rows of each result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

NETWORKS = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "mobilenet": "MobileNet-V1 0.75",
    "resnet50": "ResNet-50",
    "lenet-300-100": "LeNet-300-100",
    "lenet-5": "LeNet-5",
}


def main_job(rows: list[Row]) -> list[str]:
    """Joint mode's rows by asked ratio, then paper mode's."""
    return table(
        ("network", "asked", "file bytes", "file ratio", "nominal ratio", "zeros", "compress s", "inspect s"),
        (
            (
                NETWORKS[row["network"]],
                _asked(row),
                f"{row['file_bytes']:,}",
                f"{row['file_ratio']:.2f}",
                f"{row['nominal_ratio']:.1f}",
                f"{row['sparsity']:.1%}",
                f"{row['compress_seconds']:.2f}",
                f"{row['inspect_seconds']:.2f}",
            )
            for row in rows
        ),
    )


def _asked(row: Row) -> str:
    if row["mode"] == "joint":
        return f"ratio {row['ratio']:g}"
    return f"{row['target_sparsity']:.0%} zeros, {row['target_bits']:g} bits"


def laplace_fit(rows: list[Row]) -> list[str]:
    """Totals of each network and ratio."""
    return table(
        ("network", "ratio", "entropy of the codes", "Laplace predicts", "bytes in the file", "the plan predicts"),
        (
            (
                NETWORKS[row["network"]],
                f"{row['ratio']:g}",
                f"{row['entropy_bytes']:,.0f}",
                f"{row['laplace_error']:+.1%}",
                f"{row['measured_bytes']:,}",
                f"{row['predicted_error']:+.2%}",
            )
            for row in rows
        ),
    )


def plan_cost(rows: list[Row]) -> list[str]:
    """Seconds of each case, and how many loads of the dense file they are."""
    names = {
        "load": "load the dense file, warm",
        "load_cold": "load the dense file, cold",
        "torch_load": "torch.load of it, warm",
        "plan": "plan, ratio 20, weights in memory",
        "plan_paper": "plan, sparsity 0.9 and 3 bits",
        "plan_from_path": "plan, ratio 20, from the file",
        "curve": "the curve, eleven ratios",
        "compress": "compress, ratio 20",
    }
    names |= {row["case"]: f"plan, ratio 20, {row['weights'] / 1e6:,.0f} million*" for row in rows if row["over_load"] is None}
    return table(
        ("", "seconds", "over warm load", "over cold load"),
        (
            (names[row["case"]], f"{row['seconds']:.3f}", _times(row["over_load"]), _times(row["over_load_cold"]))
            for row in rows
            if row["case"] in names
        ),
    )


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def codec(rows: list[Row]) -> list[str]:
    """Bytes and speed-ups of every case."""
    return table(
        ("codes", "weights", "entropy", "nncodec's stream", "its payload", "opq", "opq / stream", "encoding", "decoding"),
        (
            (
                row["case"],
                f"{row['weights']:,}",
                f"{row['entropy_bytes']:,}",
                f"{row['nncodec_bytes']:,}",
                f"{row['nncodec_payload_bytes']:,}",
                f"{row['opq_bytes']:,}",
                f"{row['opq_over_nncodec']:.3f}",
                f"{row['encode_speedup']:.1f}x",
                f"{row['decode_speedup']:.1f}x",
            )
            for row in rows
        ),
    )


def squeezenet(rows: list[Row]) -> list[str]:
    """Bytes of the whole file, and what they are spent on."""
    return table(
        ("", "published", "opq", "opq / published", "codes", "levels", "biases", "header", "encoding s", "decoding s"),
        (
            (
                row["case"],
                *(f"{row[key]:,}" for key in ("published_bytes", "opq_bytes")),
                f"{row['opq_share']:.2%}",
                *(f"{row[f'{kind}_bytes']:,}" for kind in ("codes", "levels", "biases", "header")),
                f"{row['encode_seconds']:.2f}",
                f"{row['decode_seconds']:.2f}",
            )
            for row in rows
        ),
    )


def loading(rows: list[Row]) -> list[str]:
    """Seconds of each way to load, warm and cold."""
    names = {"torch": "torch.load", "safetensors": "safetensors"}
    caches = {(row["way"], row["cache"]): row for row in rows}
    return table(
        ("", "file bytes", "warm s", "over torch.load", "cold s", "over torch.load"),
        (
            (
                names.get(way, way),
                f"{caches[way, 'warm']['file_bytes']:,}",
                *(
                    text
                    for cache in ("warm", "cold")
                    for text in (f"{caches[way, cache]['seconds']:.3f}", f"{caches[way, cache]['over_torch_load']:.2f}")
                ),
            )
            for way in dict.fromkeys(row["way"] for row in rows)
        ),
    )


def large(rows: list[Row]) -> list[str]:
    """Seconds and peak memory of each process."""
    return table(
        ("", "seconds", "peak memory", "file bytes", "weights taken over"),
        (
            (
                f"`opq {row['case']}`" if " " not in row["case"] else row["case"],
                f"{row['seconds']:.1f}",
                f"{row['peak_bytes'] / 1e9:.2f} GB",
                "" if row["file_bytes"] is None else f"{row['file_bytes']:,}",
                "" if row["resumed"] is None else f"{row['resumed']}",
            )
            for row in rows
        ),
    )


def mnist(rows: list[Row]) -> list[str]:
    """A row a network and file ratio; errors are means over seeds, with the range where there are several."""
    cases = dict.fromkeys((row["network"], row["ratio"]) for row in rows)
    groups = [[row for row in rows if (row["network"], row["ratio"]) == case] for case in cases]
    return table(
        (
            "network",
            "file bytes",
            "file ratio",
            "nominal ratio",
            "zeros",
            "dense error",
            "error",
            "epochs",
            "seeds",
        ),
        (
            (
                NETWORKS[group[0]["network"]],
                f"{max(row['file_bytes'] for row in group):,}",
                f"{min(row['file_ratio'] for row in group):.1f}",
                f"{_mean(group, 'nominal_ratio'):.0f}",
                f"{_mean(group, 'sparsity'):.1%}",
                _errors(group, "dense_top1"),
                _errors(group, "top1"),
                f"{group[0]['dense_epochs']} + {group[0]['epochs']}",
                f"{len(group)}",
            )
            for group in groups
        ),
    )


def _mean(rows: list[Row], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)


def _errors(rows: list[Row], key: str) -> str:
    values = [100.0 - row[key] for row in rows]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.2f}%{spread}"


def efficiency(rows: list[Row]) -> list[str]:
    """Both ways to a file, then the parts."""
    names = {
        "dense": "dense network, where both begin",
        "iterative": "gradual pruning, then learned steps",
        "opq": "opq: one plan, then finetuning",
        "opq, masks fixed": "the same, pruned as the dense weights say",
        "plan": "one plan",
        "plain epoch": "an epoch of the plain network",
        "prepared epoch": "an epoch of the prepared network",
    }
    dense = next(row["file_bytes"] for row in rows if row["way"] == "dense")
    return table(
        ("", "file bytes", "file ratio", "top-1 %", "epochs", "seconds of the processor"),
        (
            (
                names[row["way"]],
                "" if row["file_bytes"] is None else f"{row['file_bytes']:,}",
                "" if row["file_bytes"] is None else f"{dense / row['file_bytes']:.1f}",
                "" if row["top1"] is None else f"{row['top1']:.2f}",
                "" if row["epochs"] is None else f"{row['epochs']}",
                "" if row["processor_seconds"] is None else f"{row['processor_seconds']:.3g}",
            )
            for row in rows
        ),
    )


def ablations(rows: list[Row]) -> list[str]:
    """Every variant; those of one ablation, network and ratio have the same bytes."""
    return table(
        ("choice", "variant", "network", "file bytes", "file ratio", "dense top-1 %", "top-1 %", "epochs"),
        (
            (
                row["ablation"],
                row["variant"],
                NETWORKS[row["network"]],
                f"{row['file_bytes']:,}",
                f"{row['file_ratio']:.1f}",
                f"{row['dense_top1']:.2f}",
                f"{row['top1']:.2f}",
                f"{row['epochs']}",
            )
            for row in rows
        ),
    )


def allocation(rows: list[Row]) -> list[str]:
    """Accuracy of every file, beside the dense network's on the same images."""
    return table(
        ("network", "method", "data", "file bytes", "file ratio", "top-1", "dense", "agreement"),
        (
            (
                NETWORKS[row["network"]],
                row["method"],
                row["data"],
                f"{row['file_bytes']:,}",
                f"{row['file_ratio']:.1f}",
                f"{row['top1']:.2f}",
                f"{row['dense_top1']:.2f}",
                f"{row['agreement']:.1f}",
            )
            for row in rows
        ),
    )


def peers(rows: list[Row]) -> list[str]:
    """The smallest file of each way, smallest first; of a network, those that saw no labels first, those not within last."""
    order = list(NETWORKS).index
    ordered = sorted(
        rows, key=lambda row: (order(row["network"]), row["data"] == "labelled", not row["within"], row["packed_bytes"])
    )
    return table(
        ("network", "way", "data", "setting", "saved as", "file bytes", "packed", "dense / packed", "top-1 %", "drop"),
        (
            (
                NETWORKS[row["network"]],
                f"{row['way']} ({row['tool']})",
                row["data"],
                row["setting"],
                row["saved_as"],
                f"{row['file_bytes']:,}",
                f"{row['packed_bytes']:,}",
                f"{row['packed_ratio']:.1f}",
                f"{row['top1']:.2f}",
                f"{row['drop']:.2f} ± {row['error']:.2f}" + ("" if row["within"] else ", none within"),
            )
            for row in ordered
        ),
    )


def finetune(rows: list[Row]) -> list[str]:
    """The ResNets' rows, joint mode first, by the asked ratio."""
    return table(
        (
            "network",
            "mode",
            "asked",
            "file bytes",
            "file ratio",
            "nominal ratio",
            "epochs",
            "top-1 %",
            "dense as long %",
            "teacher %",
            "open epochs",
        ),
        (
            (
                NETWORKS[row["network"]],
                row["mode"],
                f"{row['asked_ratio']:g}",
                *_finetuned(row),
                f"{row['teacher_top1']:.2f}",
                f"{row['open_epochs']}",
            )
            for row in sorted(rows, key=lambda row: (row["network"], row["mode"], row["asked_ratio"], row["epochs"]))
        ),
    )


def _finetuned(row: Row) -> tuple[str, ...]:
    return (
        f"{row['file_bytes']:,}",
        f"{row['file_ratio']:.1f}",
        f"{row['nominal_ratio']:.1f}",
        f"{row['epochs']}",
        f"{row['top1']:.2f}",
        f"{row['dense_top1']:.2f}",
    )


def finetune_mobilenet(rows: list[Row]) -> list[str]:
    """MobileNet's rows, by the asked ratio."""
    return table(
        ("network", "file bytes", "file ratio", "nominal ratio", "epochs", "top-1 %", "dense %", "agreement %"),
        (
            (
                NETWORKS[row["network"]],
                *_finetuned(row),
                f"{row['agreement']:.1f}",
            )
            for row in sorted(rows, key=lambda row: (row["asked_ratio"], row["epochs"]))
        ),
    )


def finetune_cost(rows: list[Row]) -> list[str]:
    """A step of a prepared network against a plain one's."""
    return table(
        ("network", "device", "plain s", "prepared s", "masks open s", "time", "peak memory"),
        (
            (
                NETWORKS[row["network"]],
                row["device"],
                f"{row['plain_seconds']:.3f}",
                f"{row['prepared_seconds']:.3f}",
                f"{row['open_seconds']:.3f}",
                f"{row['time_ratio']:.2f}x",
                f"{row['memory_ratio']:.2f}x",
            )
            for row in rows
        ),
    )


def example(rows: list[Row]) -> list[str]:
    """What the command line says of ResNet-56 at ratio 20."""
    row = next(row for row in rows if row["network"] == "resnet56" and row["ratio"] == 20)
    return [
        "    $ opq compress resnet56.safetensors --ratio 20 -o resnet56.opq",
        f"    resnet56.opq: {row['file_bytes']:,} bytes of {row['dense_bytes']:,} dense, file ratio {row['file_ratio']:.2f}, "
        f"nominal ratio {row['nominal_ratio']:.2f}, {row['bits_per_weight']:.3f} bits a weight, {row['sparsity']:.2%} zeros",
    ]


@dataclass(frozen=True)
class Section:
    """What stands between two markers of a page.

    source  name of the result file
    lines   what it makes of the rows
    has     whether a row belongs here
    """

    source: str
    lines: Callable[[list[Row]], list[str]]
    has: Callable[[Row], bool] = lambda row: True


SECTIONS: dict[str, Section] = {
    "example": Section("main_job", example),
    "laplace_fit": Section("laplace_fit", laplace_fit, lambda row: row["layer"] == "(total)"),
    "finetune": Section("finetune", finetune, lambda row: row["network"] != "mobilenet"),
    "finetune_mobilenet": Section("finetune", finetune_mobilenet, lambda row: row["network"] == "mobilenet"),
    **{
        section.__name__: Section(section.__name__, section)
        for section in (
            main_job,
            plan_cost,
            codec,
            squeezenet,
            loading,
            large,
            mnist,
            efficiency,
            ablations,
            allocation,
            peers,
            finetune_cost,
        )
    },
}
"""{marker: what stands there}"""


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table."""
    head = list(columns)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *map(list, rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]
