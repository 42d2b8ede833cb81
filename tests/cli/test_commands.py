"""The commands that need no network, on .safetensors checkpoints; they work without PyTorch."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import opq
import opq.numpy
from opq.cli import main


@pytest.fixture
def source(network, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(network, path, metadata={"format": "np"})
    return path


LINE = r"{file}: [0-9.]+ kB, {ratio}x smaller than [0-9.]+ kB \([0-9.]+ bits per weight, [0-9]+% zeros\)\n"
"""The output of commands that write a .opq file."""


def run(capsys, *arguments):
    """Exit status, stdout and stderr of a command."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_compress_inspect_verify_expand(source, network, tmp_path, capsys):
    """A checkpoint becomes a file of the requested size; every tensor is restored with its name, shape and dtype."""
    file, back = tmp_path / "net.opq", tmp_path / "back.safetensors"
    status, out, err = run(capsys, "compress", source, "--ratio", 10, "-o", file)
    dense = sum(array.nbytes for array in network.values())
    assert (status, err) == (0, "")
    assert re.fullmatch(LINE.format(file=re.escape(str(file)), ratio="10.0"), out)
    assert 0.98 * dense / 10 <= file.stat().st_size <= dense / 10

    status, out, err = run(capsys, "inspect", file, "--all")
    assert (status, err) == (0, "")
    assert all(name in out for name in network)
    assert re.search(r"\n[0-9.]+ kB, 10\.0x smaller than .*\nnominal ratio [0-9.]+\n$", out)

    status, out, err = run(capsys, "verify", file)
    assert (status, err) == (0, "")
    assert "valid; 4 weights and 16 auxiliary tensors" in out

    status, out, err = run(capsys, "expand", file, "-o", back)
    assert (status, err) == (0, "")
    expanded, loaded = load_file(back), opq.numpy.load_file(file)
    assert {k: (v.shape, v.dtype) for k, v in expanded.items()} == {k: (v.shape, v.dtype) for k, v in network.items()}
    assert all(expanded[name].tobytes() == loaded[name].tobytes() for name in network)


def test_inspect_json_has_what_scripts_need(source, tmp_path, capsys):
    """The documented fields exist and equal those of `opq.inspect`."""
    run(capsys, "compress", source, "--size", "20kB", "-o", tmp_path / "net.opq")
    status, out, _ = run(capsys, "inspect", "--json", tmp_path / "net.opq")
    found = json.loads(out)
    assert status == 0
    promised = {
        "file_bytes",
        "dense_bytes",
        "file_ratio",
        "nominal_ratio",
        "bits_per_weight",
        "sparsity",
        "format_version",
        "bytes_by_kind",
        "tensors",
    }
    assert promised <= set(found)
    assert {"name", "shape", "dtype", "kind", "sparsity", "step", "bits", "bytes"} <= set(found["tensors"][0])
    assert found == json.loads(json.dumps(opq.inspect(tmp_path / "net.opq").to_dict()))


def test_a_plan_is_a_dry_run(source, tmp_path, capsys):
    """A plan is printed as a table or JSON, writes no other file, and compresses to the planned file."""
    status, table, err = run(capsys, "plan", source, "--ratio", 10)
    assert (status, err) == (0, "")
    assert "joint plan for ratio 10: 4 weights" in table
    assert {path.name for path in tmp_path.iterdir()} == {"net.safetensors"}

    status, out, _ = run(capsys, "plan", source, "--sparsity", 0.8, "--bits", 3, "--json", "-o", tmp_path / "plan.json")
    assert status == 0
    assert opq.Plan.from_json(out) == opq.Plan.from_json((tmp_path / "plan.json").read_text())
    status, _, _ = run(capsys, "compress", source, "--plan", tmp_path / "plan.json", "-o", tmp_path / "net.opq")
    assert status == 0
    assert (tmp_path / "net.opq").read_bytes() == opq.compress(source, sparsity=0.8, bits=3).data


def test_options_reach_the_library(source, network, tmp_path, capsys):
    """Selection, layer settings, rounding, speed and auxiliary storage give the same file as the library's keywords."""
    arguments = ["--ratio", 8, "--exclude", "conv1*", "--layer", "fc.weight:step=0.05", "--auxiliary", "float16"]
    arguments += ["--rounding", "deadzone", "--speed", "fast"]
    status, out, _ = run(capsys, "compress", source, *arguments, "-o", tmp_path / "net.opq", "--json")
    assert status == 0
    config = opq.CompressionConfig(
        target=opq.Ratio(8),
        exclude=("conv1*",),
        layers={"fc.weight": opq.LayerConfig(step=0.05)},
        auxiliary="float16",
        rounding="deadzone",
        speed="fast",
    )
    assert (tmp_path / "net.opq").read_bytes() == opq.compress(source, config).data
    assert json.loads(out)["file_bytes"] == (tmp_path / "net.opq").stat().st_size
    (tmp_path / "config.json").write_text(config.to_json())
    assert run(capsys, "compress", source, "--config", tmp_path / "config.json", "-o", tmp_path / "same.opq")[0] == 0
    assert (tmp_path / "same.opq").read_bytes() == (tmp_path / "net.opq").read_bytes()
    assert run(capsys, "plan", source, "--config", tmp_path / "config.json", "--json")[1] == opq.plan(source, config).to_json()


def test_scales_reach_the_library(source, network, tmp_path, capsys):
    """--scales, and scales of a --layer, are those of the config; the plan and the file show them."""
    file = tmp_path / "n.opq"
    options = ["--ratio", "8", "--scales", "rows", "--layer", "fc.weight:scales=none"]
    assert main(["compress", str(source), *options, "-o", str(file)]) == 0
    layers = {"fc.weight": opq.LayerConfig(scales="none")}
    assert file.read_bytes() == opq.compress(source, ratio=8, scales="rows", layers=layers).data
    capsys.readouterr()
    assert main(["inspect", str(file), "--all"]) == 0
    shown = {line.split()[0]: " by rows" in line for line in capsys.readouterr().out.split("\n\n")[0].splitlines()}
    assert {name for name, has in shown.items() if has} == {
        name for name, array in network.items() if array.ndim > 1 and name != "fc.weight"
    }
    assert main(["plan", str(source), "--ratio", "8", "--layer", "fc.weight:scales=rows"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if " by rows" in line] == ["fc.weight"]


def test_no_zeros_is_a_sparsity(source, tmp_path, capsys):
    """`--sparsity 0` is a valid target: nothing is pruned."""
    status, _, _ = run(capsys, "compress", source, "--sparsity", 0, "--bits", 4, "-o", tmp_path / "net.opq")
    assert status == 0
    assert opq.inspect(tmp_path / "net.opq").sparsity == 0.0


def test_options_for_auxiliary_tensors_reach_the_library(source, tmp_path, capsys):
    """8 bits, folded batch norms and their eps give the library's file; the error of each tensor is printed."""
    arguments = ["--ratio", 8, "--auxiliary", "uint8", "--batch-norm", "folded", "--batch-norm-eps", 1e-3]
    status, _, _ = run(capsys, "compress", source, *arguments, "-o", tmp_path / "net.opq")
    assert status == 0
    options = {"auxiliary": "uint8", "batch_norm": "folded", "batch_norm_eps": 1e-3}
    assert (tmp_path / "net.opq").read_bytes() == opq.compress(source, ratio=8, **options).data
    status, table, _ = run(capsys, "inspect", tmp_path / "net.opq", "--all")
    assert "relative8" in table
    assert "%" in next(line for line in table.splitlines() if line.startswith("conv1_bn.weight"))


def test_lossless_keeps_every_bit(tmp_path, capsys):
    """Clustered weights compress well, and expand to the same bytes."""
    pool = np.random.default_rng(0).normal(size=16).astype(np.float32)
    state = {"fc.weight": pool[np.random.default_rng(1).integers(0, 16, (100, 90))], "fc.bias": pool[:9].copy()}
    save_file(state, tmp_path / "net.safetensors")
    status, out, _ = run(capsys, "compress", tmp_path / "net.safetensors", "--lossless", "-o", tmp_path / "net.opq")
    assert status == 0
    assert re.fullmatch(LINE.format(file=re.escape(str(tmp_path / "net.opq")), ratio=r"7\.[0-9]"), out)
    assert run(capsys, "expand", tmp_path / "net.opq", "-o", tmp_path / "back.safetensors")[0] == 0
    assert all(array.tobytes() == state[name].tobytes() for name, array in load_file(tmp_path / "back.safetensors").items())


def test_inspect_compares_on_request(source, tmp_path, capsys):
    """The sizes under gzip, zstd and xz print as a table or as JSON."""
    run(capsys, "compress", source, "--ratio", 8, "-o", tmp_path / "net.opq")
    assert "xz -6" not in run(capsys, "inspect", tmp_path / "net.opq")[1]
    status, table, _ = run(capsys, "inspect", tmp_path / "net.opq", "--compare")
    assert status == 0
    assert all(word in table for word in ("used for", "batch-norm", "gzip -9", "zstd -19", "xz -6", "entropy"))
    found = json.loads(run(capsys, "inspect", tmp_path / "net.opq", "--compare", "--json")[1])
    assert found["comparison"] == opq.compare(tmp_path / "net.opq").to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "{source}", "-o", "{new}", "--lossless", "--ratio", "3"], "Give exactly one target"),
        (["plan", "{source}", "--lossless"], "No such option"),
        (["compress", "{source}", "-o", "{new}", "--plan", "p", "--batch-norm", "keep"], "leave out --batch-norm"),
        (["compress", "{source}", "-o", "{new}"], "Give exactly one target"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "3", "--size", "5"], "Give exactly one target"),
        (["compress", "{source}", "-o", "{new}", "--sparsity", "0.5"], "Give exactly one target"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "much"], "not a valid float"),
        (["compress", "{source}", "--ratio", "3"], "Missing option"),
        (
            ["compress", "{source}", "-o", "{new}", "--plan", "p", "--ratio", "3"],
            "--plan already determines masks and steps; leave out --ratio",
        ),
        (["compress", "{source}", "-o", "{new}", "--plan", "p", "--auxiliary", "exact"], "leave out --auxiliary"),
        (["compress", "{source}", "-o", "{new}", "--plan", "p", "--layer", "a:bits=3"], "leave out --layer"),
        (["compress", "{source}", "-o", "{new}", "--plan", "p", "--config", "c"], "leave out --config"),
        (
            ["compress", "{source}", "-o", "{new}", "--config", "c", "--size", "3"],
            "--config holds all settings; leave out --size",
        ),
        (["compress", "{source}", "-o", "{new}", "--config", "c", "--layer", "a:bits=3"], "leave out --layer"),
        (["plan", "{source}", "--config", "c", "--batch-norm-eps", "0"], "leave out --batch-norm-eps"),
        (["plan", "{source}", "--curve", "--config", "c"], "leave out the target"),
        (["plan", "{source}", "--curve", "-o", "{new}"], "leave out --output"),
        (["plan", "{source}", "--ratio", "3", "--plot", "{new}"], "--plot requires --curve"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "3", "--rounding", "best"], "'best' is not one of 'auto'"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "3", "--layer", "fc"], "must be GLOB:KEY=X"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "3", "--layer", "fc:size=3"], "must be GLOB:KEY=X"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "3", "--layer", "fc:bits=x"], "must be GLOB:KEY=X"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "3", "--scales", "all"], "'all' is not one of"),
        (["compress", "{source}", "-o", "{new}", "--plan", "p", "--scales", "rows"], "leave out --scales"),
        (["squeeze", "{source}"], "No such command"),
        (["verify"], "Missing argument"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, message, source, tmp_path, capsys):
    """Wrong usage is explained on stderr, and nothing is written."""
    status, out, err = run(capsys, *[a.format(source=source, new=tmp_path / "new") for a in arguments])
    assert (status, out) == (2, "")
    assert message in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "{folder}/none.safetensors", "-o", "{new}", "--ratio", "3"], "no such file or folder"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "5000"], "is out of reach; reachable with the selected tensors: "),
        (["compress", "{source}", "-o", "{new}", "--ratio", "0.5"], "is out of reach"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "-1"], "ratio must be positive, from 1e-9 to 1e9, got -1"),
        (["compress", "{source}", "-o", "{new}", "--lossless", "--auxiliary", "float16"], "remove auxiliary"),
        (["compress", "{source}", "-o", "{new}", "--size", "many"], "size must be a positive number of bytes"),
        (["compress", "{source}", "-o", "{new}", "--sparsity", "1.5", "--bits", "3"], "sparsity must lie in [0, 1), got 1.5"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "3", "--exclude", "convv"], "matches no weight"),
        (["compress", "{source}", "-o", "{new}", "--plan", "{folder}/none.json"], "No such file"),
        (["compress", "{source}", "-o", "{new}", "--plan", "{source}"], "plan"),
        (["compress", "{source}", "-o", "{new}", "--config", "{folder}/none.json"], "No such file"),
        (["compress", "{source}", "-o", "{new}", "--config", "{source}"], "must be a JSON file in UTF-8"),
        (["compress", "{source}", "-o", "{folder}/no/where.opq", "--ratio", "8"], "there is no folder"),
        (["compress", "{source}", "-o", "{source}", "--ratio", "8"], "it is the source that is being read"),
        (["plan", "{source}", "--ratio", "8", "-o", "{source}"], "it is the source that is being read"),
        (["expand", "{source}", "-o", "{new}"], "net.safetensors: start: expected b'OPQ'"),
        (["expand", "{folder}/none.opq", "-o", "{new}"], "No such file"),
        (["inspect", "{folder}"], "Is a directory"),
        (["verify", "{source}"], "not a valid .opq file"),
        (["compress", "{source}", "-o", "{source}", "--ratio", "8", "--force"], "it is the source that is being read"),
        (["compress", "{source}", "-o", "{folder}", "--ratio", "8", "--force"], "it is a folder"),
        (["expand", "{source}", "-o", "{source}", "--force"], "it is the source that is being read"),
        (["plan", "{source}", "--ratio", "8", "-o", "{source}", "--force"], "it is the source that is being read"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "1e-320"], "ratio must be positive, from 1e-9 to 1e9"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "1e300"], "ratio must be positive, from 1e-9 to 1e9"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "1e9"], "is out of reach"),
        (["compress", "{source}", "-o", "{new}", "--ratio", "8", "--layer", "fc.weight:step=1e-20"], "step must lie in"),
    ],
)
def test_the_users_errors_are_one_line_and_exit_with_1(arguments, message, source, tmp_path, capsys):
    """The error is one line on stderr without a traceback. Nothing is printed to stdout, and no file is written or changed."""
    before = source.read_bytes()
    status, out, err = run(capsys, *[a.format(source=source, folder=tmp_path, new=tmp_path / "new") for a in arguments])
    assert (status, out) == (1, "")
    assert err.startswith("opq: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    assert source.read_bytes() == before


def test_layer_options_with_the_same_glob_are_merged(source, tmp_path, capsys):
    """If --layer is given twice for a glob, the fields of both apply."""
    arguments = ["--layer", "fc.weight:bits=3", "--layer", "fc.weight:sparsity=0.5", "--sparsity", 0.8, "--bits", 4]
    assert run(capsys, "compress", source, *arguments, "-o", tmp_path / "net.opq")[0] == 0
    options = {"layers": {"fc.weight": opq.LayerConfig(bits=3, sparsity=0.5)}}
    assert (tmp_path / "net.opq").read_bytes() == opq.compress(source, sparsity=0.8, bits=4, **options).data


def test_bad_weights_are_one_line(network, tmp_path, capsys):
    """The error about NaN in a weight names the tensor."""
    network["fc.weight"][0, 0] = np.nan
    save_file(network, tmp_path / "nan.safetensors")
    status, _, err = run(capsys, "compress", tmp_path / "nan.safetensors", "--ratio", 4, "-o", tmp_path / "new")
    assert status == 1
    assert "tensor 'fc.weight' (10, 64): 1 value is NaN or infinite" in err


def test_truncated_files_are_refused(source, tmp_path, capsys):
    """Every command that reads a .opq file refuses a truncated one."""
    run(capsys, "compress", source, "--ratio", 10, "-o", tmp_path / "net.opq")
    data = (tmp_path / "net.opq").read_bytes()
    for length in (0, 2, 7, 11, 12, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.opq").write_bytes(data[:length])
        for command in (["inspect"], ["verify"], ["expand", "-o", tmp_path / "new"]):
            status, out, err = run(capsys, command[0], tmp_path / "cut.opq", *command[1:])
            assert (status, out) == (1, "")
            assert "not a valid .opq file" in err


def test_only_force_replaces_a_file(source, tmp_path, capsys):
    """Only with --force is an existing output replaced."""
    file = tmp_path / "net.opq"
    file.write_text("old")
    assert run(capsys, "compress", source, "--ratio", 10, "-o", file)[0] == 1
    assert file.read_text() == "old"
    assert run(capsys, "compress", source, "--ratio", 10, "-o", file, "--force")[0] == 0
    assert run(capsys, "verify", file)[0] == 0


def python(*arguments, **options):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
def test_python_m_opq_is_opq(source, tmp_path):
    """`python -m opq` has the output and exit statuses of `opq`, with results on stdout only."""
    done = python("-m", "opq", "compress", source, "--ratio", 10, "-o", tmp_path / "net.opq")
    assert (done.returncode, done.stderr) == (0, "")
    assert "10.0x smaller" in done.stdout
    assert python("-m", "opq", "inspect", tmp_path / "none").returncode == 1
    assert python("-m", "opq", "compress").returncode == 2
    assert python("-m", "opq", "--version").stdout.strip() == f"opq, version {opq.__version__}"


def test_reading_does_not_load_what_planning_needs(source, tmp_path):
    """Inspecting imports neither SciPy nor PyTorch, so that it starts quickly."""
    assert main(["compress", str(source), "--ratio", "10", "-o", str(tmp_path / "net.opq")]) == 0
    code = (
        "import sys; from opq.cli import main; main(sys.argv[1:]); print(sorted({'scipy', 'torch', 'rich'} & set(sys.modules)))"
    )
    done = python("-c", code, "inspect", tmp_path / "net.opq")
    assert done.stdout.strip().endswith("[]")


@pytest.mark.slow
def test_a_closed_stdout_prints_no_traceback(source, tmp_path):
    """`opq plan SOURCE | head -c 1` ends without an error message."""
    assert main(["compress", str(source), "--ratio", "10", "-o", str(tmp_path / "net.opq")]) == 0
    command = f"{sys.executable} -m opq plan {source} --ratio 10 --json | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert done.stderr == ""


@pytest.mark.slow
def test_a_curve_is_printed_and_plotted(source, tmp_path, capsys):
    """`opq plan --curve` prints the points of `opq.rd_curve`, and plots them to a file with a supported suffix."""
    status, out, err = run(capsys, "plan", source, "--curve", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == [vars(point) for point in opq.rd_curve(source)]
    pytest.importorskip("matplotlib")
    status, out, _ = run(capsys, "plan", source, "--curve", "--plot", tmp_path / "curve.svg")
    assert status == 0
    assert "bits/weight" in out
    assert (tmp_path / "curve.svg").read_bytes().startswith(b"<?xml")
    assert run(capsys, "plan", source, "--curve", "--plot", tmp_path / "curve.txt")[0] == 2


@pytest.mark.parametrize(
    "command", ["compress", "calibrate", "finetune", "search", "plan", "evaluate", "expand", "inspect", "verify"]
)
def test_every_command_prints_its_help(command, capsys):
    """The help names the command and describes it."""
    status, out, err = run(capsys, command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: opq {command} ")
    assert f"\n  {command} " in run(capsys, "--help")[1]
