"""The tables that docs/results.md and README.md show of the rows of each result.

Result files keep the names that were recorded; NETWORKS, METHODS, WAYS and the like translate them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import zoo_comparison

from opq.text_table import file_summary

Row = dict[str, Any]

NETWORKS = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "mobilenet": "MobileNet-V1 0.75",
    "resnet50": "ResNet-50",
    "lenet-300-100": "LeNet-300-100",
    "lenet-5": "LeNet-5",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "minilm": "MiniLM",
    "wordllama": "WordLlama",
    "silero_vad": "Silero VAD",
    "fcpe": "FCPE",
    "smollm2": "SmolLM2",
    "gpt5m": "small GPT",
    "lstm": "LSTM",
    "magika": "Magika",
    "nudenet": "NudeNet (YOLOv8n)",
    "open_nsfw": "Open NSFW (ResNet-50, thin)",
    "text_detector": "PP-OCRv4, detection",
    "text_reader": "PP-OCRv4, recognition",
    "captcha_reader": "ddddocr",
    "nakdimon": "Nakdimon (LSTM)",
    "tashkeel": "libtashkeel",
    "dnsmos": "DNSMOS",
    "basic_pitch": "Basic Pitch",
}

METHODS = {
    "nncodec-uniform": "nncodec, uniform",
    "nncodec-dependent": "nncodec, dependent",
    "opq-paper": "opq, two-stage",
    "opq-joint": "opq, weights only",
    "opq-joint-plain": "opq, dead-zone rounding",
    "opq-joint-squared": "opq, one step",
    "opq-joint-fisher": "opq, Fisher sensitivities",
    "opq-drawn": "opq, synthetic images",
    "opq-calibrated": "opq, calibrated",
    "prune-int8-gzip": "pruning, int8, gzip",
    "prune-int4-gzip": "pruning, int4, gzip",
    "prune-kmeans-gzip": "pruning, k-means, gzip",
}
"""Methods of allocation.json."""

WAYS = {
    "dense": "dense",
    "opq": "opq, weights only",
    "opq, drawn inputs": "opq, synthetic images",
    "opq, calibrated": "opq, calibrated",
    "opq, finetuned": "opq, finetuned",
    "nncodec, uniform": "nncodec, uniform",
    "nncodec, dependent": "nncodec, dependent",
    "nncodec, sparsified": "nncodec, sparsified",
    "nncodec, tuned": "nncodec, tuned",
    "NNCF, pruned, 8 bits": "NNCF, pruned, 8 bits",
    "torchao, integers": "torchao, integers",
    "k-means, pruned": "pruning, k-means",
    "integers, pruned": "pruning, integers",
}
"""Methods of peers.json."""

_CLUSTER, _CORE_HOUR = 64, 0.05
"""Workers of the estimated cluster, and dollars for an hour of a core."""

_MODES = {"joint": "joint", "paper": "two-stage"}
_DATA = {"none": "none", "unlabelled": "unlabelled images", "labelled": "labelled images"}


def main_job(rows: list[Row]) -> list[str]:
    """Rows of the byte targets, then those of the two-stage targets."""
    return table(
        ("network", "target", "file bytes", "file ratio", "nominal ratio", "zeros", "compress, s", "inspect, s"),
        (
            (
                NETWORKS[row["network"]],
                _target(row),
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


def _target(row: Row) -> str:
    if row["mode"] == "joint":
        return f"ratio {row['ratio']:g}"
    return f"{row['target_sparsity']:.0%} zeros, {row['target_bits']:g} bits"


def laplace_fit(rows: list[Row]) -> list[str]:
    """Totals of each network and ratio."""
    return table(
        ("network", "ratio", "entropy, bytes", "Laplace prediction", "bytes in the file", "plan's prediction"),
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
    """Seconds of each case, and their ratio to those of loading the dense file."""
    names = {
        "load": "load the dense file, cached",
        "load_cold": "load the dense file, not cached",
        "torch_load": "torch.load, cached",
        "plan": "plan, ratio 20, weights in memory",
        "plan_paper": "plan, sparsity 0.9 and 3 bits",
        "plan_from_path": "plan, ratio 20, from the file",
        "curve": "rate-distortion curve, eleven ratios",
        "compress": "compress, ratio 20",
    }
    names |= {row["case"]: f"plan, ratio 20, {row['weights'] / 1e6:,.0f} million*" for row in rows if row["over_load"] is None}
    return table(
        ("", "seconds", "relative to cached load", "relative to uncached load"),
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
        (
            "codes",
            "weights",
            "entropy, bytes",
            "nncodec, bytes",
            "its payload, bytes",
            "opq, bytes",
            "opq / nncodec",
            "encoding speedup",
            "decoding speedup",
        ),
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


def deltas(rows: list[Row]) -> list[str]:
    """Bytes of opq and of the other tools."""
    names = {"bf16": "bfloat16", "fp32": "float32", "codes": ".opq files"}
    return table(
        (
            "learning rate",
            "checkpoints",
            "changed",
            "whole, bytes",
            "sparse",
            "zstd -19",
            "z4ai",
            "nncodec",
            "opq",
            "opq / sparse",
        ),
        (
            (
                f"{row['learning_rate']:g}",
                names[row["tensors"]],
                f"{100 * row['changed']:.2f}%",
                f"{row['whole_bytes']:,}",
                f"{row['sparse_bytes']:,}",
                *("-" if row[f"{tool}_bytes"] is None else f"{row[f'{tool}_bytes']:,}" for tool in ("zstd", "z4ai", "nncodec")),
                f"{row['opq_bytes']:,}",
                f"{row['opq_over_sparse']:.3f}",
            )
            for row in rows
        ),
    )


def squeezenet(rows: list[Row]) -> list[str]:
    """Bytes of the whole file, and of its parts."""
    return table(
        ("", "published", "opq", "opq / published", "codes", "levels", "biases", "header", "encoding, s", "decoding, s"),
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
    """Seconds of each loader, with the file in the page cache and without."""
    names = {"torch": "torch.load", "safetensors": "safetensors"}
    caches = {(row["way"], row["cache"]): row for row in rows}
    return table(
        ("", "file bytes", "cached, s", "relative to torch.load", "not cached, s", "relative to torch.load"),
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


def speeds(rows: list[Row]) -> list[str]:
    """Bytes and decoding times of each speed, relative to adaptive sections alone."""
    return table(
        ("", "speed", "bytes", "relative to adaptive", "decoding, s", "speedup", "weights in fast sections"),
        (
            (
                row["case"],
                row["speed"],
                f"{row['bytes']:,}",
                f"{row['over_adaptive']:.4f}",
                f"{row['decode_seconds']:.3f}",
                f"{row['speedup']:.1f}x",
                f"{row['fast_weights']:.0%}",
            )
            for row in rows
            if row["speed"] != "adaptive"
        ),
    )


def lossless(rows: list[Row]) -> list[str]:
    """Bytes and speeds of each tool on the same weights."""
    return table(
        ("weights", "tool", "bytes", "of the weights", "encoding, MB/s", "decoding, MB/s"),
        (
            (
                row["case"],
                f"{row['tool']} {row['version']}" if row["tool"] != "opq" else "opq",
                f"{row['bytes']:,}",
                f"{row['ratio']:.2%}",
                f"{row['encode_speed']:.0f}",
                f"{row['decode_speed']:.0f}",
            )
            for row in rows
        ),
    )


def resident(rows: list[Row]) -> list[str]:
    """Memory and time of a network, dense and with coded weights."""
    return table(
        ("network", "in memory", "batch", "seconds", "relative to dense", "at rest, MB", "of dense bytes", "peak, MB"),
        (
            (
                NETWORKS[row["network"]],
                {"tensors": "dense", "codes": "coded"}[row["resident"]],
                f"{row['batch']}",
                f"{row['seconds']:.2f}",
                f"{row['over_dense']:.2f}",
                f"{row['rest_bytes'] / 1e6:.0f}",
                f"{row['rest_over_weights']:.2f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
            )
            for row in rows
        ),
    )


def from_pretrained(rows: list[Row]) -> list[str]:
    """Bytes, time and memory of loading folders of transformers."""
    return table(
        ("network", "folder", "bytes", "seconds", "peak, MB", "relative to the network's bytes", "largest"),
        (
            (
                NETWORKS[row["network"]],
                row["folder"],
                f"{row['folder_bytes']:,}",
                f"{row['seconds']:.2f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
                f"{row['peak_over_weights']:.2f}",
                f"{row['largest']:.2f}",
            )
            for row in rows
        ),
    )


def browser(rows: list[Row]) -> list[str]:
    """Bytes, decoding times in browsers, and the sums of download and decoding."""
    rates = (10, 50, 300)
    return table(
        ("", "file bytes", "decode, s", "Chromium over C", "Node over C", *(f"at {rate} Mbit/s, s" for rate in rates)),
        (
            (
                row["way"],
                f"{row['bytes']:,}",
                f"{row['decode_seconds']:.3f}",
                *("" if row[key] is None else f"{row[key]:.2f}" for key in ("chromium_over_c", "node_over_c")),
                *(f"{row[f'seconds_at_{rate}_mbit']:.2f}" for rate in rates),
            )
            for row in rows
        ),
    )


def large(rows: list[Row]) -> list[str]:
    """Seconds and peak memory of each command."""
    return table(
        ("command", "seconds", "peak memory", "file bytes"),
        (
            (
                f"`opq {row['case']}`",
                f"{row['seconds']:.1f}",
                f"{row['peak_bytes'] / 1e9:.2f} GB",
                "" if row["file_bytes"] is None else f"{row['file_bytes']:,}",
            )
            for row in rows
        ),
    )


def ray(rows: list[Row]) -> list[str]:
    """Seconds and memory of the local run, and on clusters of several workers."""
    return table(
        ("run", "million weights", "seconds", "speed-up", "memory of the driver", "memory of a worker", "bytes"),
        (
            (
                "local" if row["workers"] is None else f"{row['workers']} workers" if row["workers"] > 1 else "1 worker",
                f"{row['weights'] / 1e6:,.0f}",
                f"{row['seconds']:.0f}",
                "" if row["speedup"] is None else f"{row['speedup']:.2f}",
                f"{row['peak_bytes'] / 1e9:.2f} GB",
                "" if row["worker_peak_bytes"] is None else f"{row['worker_peak_bytes'] / 1e9:.2f} GB",
                "" if row["same_bytes"] is None else "the same" if row["same_bytes"] else "others",
            )
            for row in rows
        ),
    )


def ray_estimate(rows: list[Row]) -> list[str]:
    """Core hours, time and cost of larger checkpoints, by arithmetic from the processor time of the local run."""
    rate = next(row["weights"] / row["cpu_seconds"] for row in rows if row["workers"] is None)
    hours = {name: weights / rate / 3600.0 for name, weights in (("70B", 70e9), ("400B", 400e9))}
    return table(
        ("checkpoint", "core hours", f"minutes with {_CLUSTER} workers", "cost"),
        (
            (name, f"{found:,.0f}", f"{60.0 * found / _CLUSTER:,.0f}", f"${_CORE_HOUR * found:,.2f}")
            for name, found in hours.items()
        ),
    )


def deploy(rows: list[Row]) -> list[str]:
    """Bytes, memory, latency and quality of each form of a network, relative to the exported model."""
    ratios = ("over_original_bytes", "over_original_memory", "over_original_batch1", "over_original_batch32")
    return table(
        ("network", "form", "integers", "floats", "file bytes", "bytes", "memory", "batch 1", "batch 32", "quality"),
        (
            (
                NETWORKS[row["network"]],
                row["form"],
                *("" if row[key] is None else str(row[key]) for key in ("integers", "floats")),
                f"{row['file_bytes']:,}",
                *("" if row[key] is None else f"{row[key]:.2f}" for key in ratios),
                "" if row["quality"] is None else f"{row['quality']:.4g}",
            )
            for row in rows
        ),
    )


def mnist(rows: list[Row]) -> list[str]:
    """A row per network and file ratio; errors are means over seeds, with their range if there are several."""
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
    """Both procedures, then single steps of them."""
    names = {
        "dense": "dense network, the start of both",
        "iterative": "gradual pruning, then learned steps",
        "opq": "opq, masks updated in training",
        "opq, masks fixed": "opq, masks of the dense weights",
        "plan": "one plan",
        "plain epoch": "one epoch of the plain network",
        "prepared epoch": "one epoch of the prepared network",
    }
    dense = next(row["file_bytes"] for row in rows if row["way"] == "dense")
    return table(
        ("", "file bytes", "file ratio", "top-1 %", "epochs", "processor seconds"),
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
    """Every variant; those of one choice, network and ratio have about the same bytes."""
    variants = {"open for two thirds of the epochs": "updated for two thirds of the epochs"}
    variants |= {"one a layer": "one per layer", "one a channel": "one per channel", "laplace": "Laplace"}
    return table(
        ("choice", "variant", "network", "file bytes", "file ratio", "dense top-1 %", "top-1 %", "epochs"),
        (
            (
                row["ablation"],
                variants.get(row["variant"], row["variant"]),
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
    """Accuracy of every file, and of the dense network on the same images."""
    return table(
        ("network", "method", "data", "file bytes", "file ratio", "top-1 %", "dense top-1 %", "agreement %"),
        (
            (
                NETWORKS[row["network"]],
                METHODS[row["method"]],
                _DATA[row["data"]],
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
    """The smallest file of each method, smallest first; per network, methods without labels first, those not within last."""
    order = list(NETWORKS).index
    ordered = sorted(
        rows, key=lambda row: (order(row["network"]), row["data"] == "labelled", not row["within"], row["packed_bytes"])
    )
    return table(
        ("network", "method", "data", "setting", "saved as", "file bytes", "packed bytes", "ratio, packed", "top-1 %", "drop"),
        (
            (
                NETWORKS[row["network"]],
                f"{WAYS[row['way']]} ({row['tool']})",
                _DATA[row["data"]],
                row["setting"],
                row["saved_as"],
                f"{row['file_bytes']:,}",
                f"{row['packed_bytes']:,}",
                f"{row['packed_ratio']:.1f}",
                f"{row['top1']:.2f}",
                f"{row['drop']:.2f} ± {row['error']:.2f}" + ("" if row["within"] else " (no setting within 1 point)"),
            )
            for row in ordered
        ),
    )


def finetune(rows: list[Row]) -> list[str]:
    """The ResNets' rows, joint mode first, by the requested ratio."""
    return table(
        (
            "network",
            "mode",
            "target ratio",
            "file bytes",
            "file ratio",
            "nominal ratio",
            "epochs",
            "top-1 %",
            "dense, trained as long %",
            "teacher %",
            "mask update epochs",
        ),
        (
            (
                NETWORKS[row["network"]],
                _MODES[row["mode"]],
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
    """MobileNet's rows, by the requested ratio."""
    return table(
        ("network", "file bytes", "file ratio", "nominal ratio", "epochs", "top-1 %", "dense top-1 %", "agreement %"),
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
    """A step of a prepared network compared with one of a plain network."""
    return table(
        ("network", "device", "plain, s", "prepared, s", "masks updated, s", "relative time", "relative peak memory"),
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


def zoo(rows: list[Row]) -> list[str]:
    """Each target: the measure of opq's file, and how much better it is than files of the ways that were asked for it."""
    rows = [row for row in rows if row["data"] == "none"]
    ways = list(dict.fromkeys(row["method"] for row in rows if row["asked_bytes"] is not None and row["method"] != "opq"))
    return table(
        ("network", "measure", "dense", "target", "bits per weight", "opq", *(f"better than {way}" for way in ways)),
        (
            (
                NETWORKS[row["network"]],
                row["measure"],
                f"{row['dense']:.4g}",
                row["setting"],
                f"{row['bits']:.2f}",
                f"{row['value']:.4g}",
                *(_better(way, row, rows) for way in ways),
            )
            for row in rows
            if zoo_comparison.is_target(row) and any(_better(way, row, rows) for way in ways)
        ),
    )


def zoo_inputs(rows: list[Row]) -> list[str]:
    """Each target of the ways with inputs: the measure of opq's file from the weights alone, calibrated, and synthetic."""
    ways = ("opq, calibrated", "opq, synthetic")
    by_key = {(row["network"], row["setting"], row["method"]): row for row in rows if row["against"] is None}
    targets = dict.fromkeys(
        (row["network"], row["setting"]) for row in rows if row["method"] in ways and row["against"] is None
    )
    return table(
        ("network", "measure", "dense", "target", "weights alone", "calibrated", "better by", "synthetic", "better by"),
        (
            (
                NETWORKS[network],
                next(row["measure"] for row in rows if row["network"] == network),
                f"{next(row['dense'] for row in rows if row['network'] == network):.4g}",
                setting,
                _value(alone := by_key.get((network, setting, "opq"))),
                *(column for way in ways for column in _value_and_gain(by_key.get((network, setting, way)), alone)),
            )
            for network, setting in targets
        ),
    )


def _value(row: Row | None) -> str:
    return "" if row is None else f"{row['value']:.4g}"


def _value_and_gain(row: Row | None, alone: Row | None) -> tuple[str, str]:
    if row is None or alone is None:
        return _value(row), ""
    difference, error = zoo_comparison.difference_of(alone, row)
    return _value(row), f"{difference:+.2g} ± {error:.1g}"


def _better(way: str, target: Row, rows: list[Row]) -> str:
    own = [row for row in rows if row["network"] == target["network"]]
    for row in own:
        if (row["method"], row["setting"]) == (way, target["setting"]) and (partner := zoo_comparison.partner(row, own)):
            difference, error = zoo_comparison.difference_of(row, partner)
            return f"{difference:+.2g} ± {error:.1g}"
    return ""


def zoo_ways(rows: list[Row]) -> list[str]:
    """How many files of each way are worse than opq's at the same bytes, about equal, and better."""
    rows = [row for row in rows if row["data"] == "none"]
    ways = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "opq" and row["setting"] != "16 bits"))
    networks = list(dict.fromkeys(row["network"] for row in rows))
    verdicts = {name: zoo_comparison.verdicts([row for row in rows if row["network"] == name]) for name in networks}
    return table(
        ("network", *ways),
        (
            (NETWORKS[name], *(_counts([verdict for other, verdict in verdicts[name] if other == way]) for way in ways))
            for name in networks
        ),
    )


def _counts(verdicts: list[str]) -> str:
    return " / ".join(str(verdicts.count(verdict)) for verdict in ("ahead", "equal", "behind")) if verdicts else ""


def example(rows: list[Row]) -> list[str]:
    """The command that compresses ResNet-56 to ratio 10, and its output."""
    row = next(row for row in rows if row["network"] == "resnet56" and row["ratio"] == 10)
    summary = file_summary(row["file_bytes"], row["dense_bytes"], row["bits_per_weight"], row["sparsity"])
    return ["    $ opq compress resnet56.safetensors --ratio 10 -o resnet56.opq", f"    resnet56.opq: {summary}"]


def headline(peers: list[Row]) -> list[str]:
    """The smallest measured files of opq that lose at most one point of top-1, per network and method."""
    networks = {"resnet20": "ResNet-20, CIFAR-10 (JPEG)", "mobilenet": "MobileNet-V1 0.75, ImageNet"}
    images = {"resnet20": "1,000 images", "mobilenet": "128 images"}
    methods = {
        "opq": ("weights only", dict.fromkeys(images, "none")),
        "opq, calibrated": ("calibrated", images),
        "opq, finetuned": ("finetuned", {"resnet20": "1,000 labelled"}),
    }
    rows = [row for network in networks for way in methods for row in peers if (row["network"], row["way"]) == (network, way)]
    return table(
        ("network", "method", "data", "file bytes", "times smaller", "top-1 %", "original %", "drop"),
        (
            (
                networks[row["network"]],
                methods[row["way"]][0],
                methods[row["way"]][1][row["network"]],
                f"{row['file_bytes']:,}",
                f"{row['file_ratio']:.1f}",
                f"{row['top1']:.2f}",
                f"{row['dense_top1']:.2f}",
                f"{row['drop']:.2f} ± {row['error']:.2f}",
            )
            for row in rows
        ),
    )


@dataclass(frozen=True)
class Section:
    """The lines between two markers of a page.

    Args:
        sources: Names of the result files.
        lines: Makes the lines from the rows of each source.
        has: Whether a row of a result belongs here.
        shows_origin: Whether a line below the table names processor, commit and date.
    """

    sources: tuple[str, ...]
    lines: Callable[..., list[str]]
    has: Callable[[Row], bool] = lambda row: True
    shows_origin: bool = True


SECTIONS: dict[str, Section] = {
    "headline": Section(("peers",), headline, shows_origin=False),
    "example": Section(("main_job",), example),
    "laplace_fit": Section(("laplace_fit",), laplace_fit, lambda row: row["layer"] == "(total)"),
    "large": Section(("large",), large, lambda row: " " not in row["case"]),
    "ray_estimate": Section(("ray",), ray_estimate, shows_origin=False),
    "finetune": Section(("finetune",), finetune, lambda row: row["network"] != "mobilenet"),
    "finetune_mobilenet": Section(("finetune",), finetune_mobilenet, lambda row: row["network"] == "mobilenet"),
    "zoo_ways": Section(("zoo",), zoo_ways, shows_origin=False),
    "zoo_inputs": Section(("zoo",), zoo_inputs, shows_origin=False),
    "unseen": Section(("unseen",), zoo),
    "unseen_ways": Section(("unseen",), zoo_ways, shows_origin=False),
    **{
        function.__name__: Section((function.__name__,), function)
        for function in (
            main_job,
            ray,
            plan_cost,
            codec,
            deltas,
            squeezenet,
            loading,
            speeds,
            lossless,
            resident,
            from_pretrained,
            browser,
            deploy,
            mnist,
            efficiency,
            ablations,
            allocation,
            peers,
            finetune_cost,
            zoo,
        )
    },
}
"""{name in the markers: how the lines between them are made}"""


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table, in which columns of numbers are aligned to the right."""
    head, body = list(columns), [list(cells) for cells in rows]
    numeric = [all(not cell or cell[0] in "0123456789+-" for cell in cells) for cells in zip(*body, strict=True)]
    lines = [head, ["---:" if right else "---" for right in numeric], *body]
    return [f"| {' | '.join(cells)} |" for cells in lines]
