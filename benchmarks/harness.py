"""What the benchmarks share: the place of the data, the measurement of times, and the result files.

Every benchmark is one script with one claim and one command. It prints its rows as a table and writes
`benchmarks/results/NAME.json`: the rows, and what they depend on (command, machine, versions, seed, commit, date). If rows take
long, they are saved one by one; then each row has its own command, commit, processor and date.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from opq import text_table

Row = Mapping[str, Any]
"""One result: {column: number, text, bool, or None if it does not apply}."""

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("OPQ_RESULTS") or ROOT / "benchmarks" / "results")
"""The folder of the result files, which OPQ_RESULTS names, by default benchmarks/results."""

NETWORKS = {
    "resnet20": "weights/resnet20_cifar10.safetensors",
    "resnet56": "weights/resnet56_cifar10.safetensors",
    "mobilenet": "weights/mobilenet_v1_0.75_imagenet.safetensors",
}
"""{network: its checkpoint under the data folder}"""

RATIOS = (4.0, 10.0, 20.0, 40.0)
"""The file ratios that benchmarks request."""

_LIBRARIES = ("opq", "numpy", "scipy", "safetensors")


@dataclass(frozen=True)
class Timing:
    """Seconds that repeated runs took."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Case:
    """Something to time: `run`. Before each run `before` is called, whose time is not counted."""

    run: Callable[[], object]
    before: Callable[[], object] = lambda: None


def data_file(relative: str) -> Path:
    """A file of the data folder, which is OPQ_DATA or ../shared/data beside the repository. Exits 1 if the file is missing."""
    folder = Path(os.environ.get("OPQ_DATA") or ROOT.parent / "shared" / "data")
    path = folder / relative
    if not path.is_file():
        where = "in the folder that OPQ_DATA names" if os.environ.get("OPQ_DATA") else "in ../shared/data (set OPQ_DATA)"
        print(f"{Path(sys.argv[0]).name}: missing data: {relative} is not {where}", file=sys.stderr)
        raise SystemExit(1)
    return path


def runs_folder() -> Path:
    """The folder for checkpoints of trainings, which OPQ_RUNS names, by default runs/out."""
    return Path(os.environ.get("OPQ_RUNS") or ROOT / "runs" / "out")


def commit_of_run(folder: Path) -> str:
    """The commit whose code started the training in `folder`. If none is recorded there, this process's is recorded."""
    note = folder / "commit"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(COMMIT + "\n", encoding="utf-8")
    return note.read_text(encoding="utf-8").strip()


def peers_python() -> str:
    """The Python interpreter of the environment of the other tools, without opq. Exits 1 if it is missing."""
    python = ROOT / ".venv-peers" / "bin" / "python"
    if not python.exists():
        print(f"{Path(sys.argv[0]).name}: the other tools are not installed; run: make peers", file=sys.stderr)
        raise SystemExit(1)
    return str(python)


def checkpoints() -> dict[str, Path]:
    """{network: path of its checkpoint}. Exits 1 if one is missing."""
    return {network: data_file(relative) for network, relative in NETWORKS.items()}


def load(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file."""
    tensors: dict[str, NDArray[Any]] = safetensors.numpy.load_file(path)
    return tensors


def entropy_bytes(codes: NDArray[Any]) -> float:
    """Zero-order entropy of all values of an array, in bytes."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(counts @ (np.log2(codes.size) - np.log2(counts))) / 8.0


def measure_seconds(cases: Mapping[str, Case], repeats: int, *, warm_up: bool = True) -> dict[str, Timing]:
    """Wall seconds of each case over `repeats` rounds. Every round runs every case once, so that drift affects all alike.

    With `warm_up` there is one more round first, which is not counted: it does the lazy imports and fills the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(-int(warm_up), repeats):
        for name, case in cases.items():
            case.before()
            start = time.perf_counter()
            case.run()
            if round_number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: summarize(values) for name, values in seconds.items()}


def summarize(seconds: Sequence[float]) -> Timing:
    """Median, lowest and highest of some times."""
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def print_rows(rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Print `rows` as an aligned table, all columns or the given ones."""
    names = list(columns or rows[0])
    print(text_table.format_table(names, [[_text(row[name]) for name in names] for row in rows]))


def save_result(benchmark: str, rows: Sequence[Row], *, seed: int | None, libraries: Sequence[str] = ()) -> None:
    """Write the rows and what they depend on to results/`benchmark`.json.

    Args:
        benchmark: Name of the result file, without its suffix: that of the script, or of a part of it.
        rows: The results.
        seed: Seed of the benchmark's random numbers; None if it uses none.
        libraries: Libraries that it uses in addition to the base install.
    """
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    _write(benchmark, rows, seed, libraries, {"command": command, "commit": COMMIT, "date": _today()})


def kept_rows(benchmark: str) -> list[Row]:
    """The rows of results/`benchmark`.json; none if there is no such file."""
    path = RESULTS / f"{benchmark}.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else []


def keep_row(
    benchmark: str,
    row: Row,
    case: Sequence[str],
    order: Callable[[Row], Any],
    *,
    command: Sequence[str],
    seed: int | None,
    libraries: Sequence[str] = (),
    commit: str | None = None,
) -> list[Row]:
    """Print a row, and save it in a result file that is written row by row.

    Args:
        benchmark: Name of the result file, without its suffix.
        row: The row.
        case: Columns that identify a row. An earlier row with the same values is replaced.
        order: Sort key of the file's rows.
        command: Script and arguments that make this row alone.
        seed: As in `save_result`.
        libraries: As in `save_result`. Machine and versions in the file are those of the last row.
        commit: Commit of the code that made the row, by default this process's.

    Returns:
        All rows of the file.
    """
    print_rows([row])
    others = [other for other in kept_rows(benchmark) if any(other[key] != row[key] for key in case)]
    script, *arguments = command
    origin = {
        "command": shlex.join(["python", f"benchmarks/{script}", *arguments]),
        "commit": commit or COMMIT,
        "processor": _processor(),
        "date": _today(),
    }
    rows = sorted([*others, {**row, **origin}], key=order)
    _write(benchmark, rows, seed, libraries, {})
    return rows


def _write(benchmark: str, rows: Sequence[Row], seed: int | None, libraries: Sequence[str], origin: Mapping[str, str]) -> None:
    document = {
        "benchmark": benchmark,
        "machine": _machine(),
        "versions": _versions([*_LIBRARIES, *libraries]),
        "seed": seed,
        **origin,
        "rows": [{key: _rounded(value) for key, value in row.items()} for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}.json"
    path.write_text(_dump(document), encoding="utf-8")
    print(f"wrote {path.name}")


def _dump(document: Mapping[str, Any]) -> str:
    """JSON with one line per row, so that a changed figure is a changed line."""
    head = json.dumps({**document, "rows": []}, indent=1, allow_nan=False)
    rows = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in document["rows"])
    return head.replace('"rows": []', f'"rows": [\n{rows}\n ]') + "\n"


def _rounded(value: Any) -> Any:
    """Six significant digits: more would be noise."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    """{library: its version}, of Python and of the libraries that are installed."""
    versions = {"python": platform.python_version()}
    for library in libraries:
        with suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _commit() -> str:
    """Short hash of the commit, with "+changes" if the code differs from it; "unknown" outside a repository."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--", "src", "benchmarks/*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


COMMIT = _commit()
"""The commit when the process started: its code runs, whatever is committed later."""
