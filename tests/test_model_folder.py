"""`opq expand` into a folder that from_pretrained loads."""

import json
import logging

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import opq
from opq.cli import main
from opq.errors import OutputError, SourceError

TENSORS = {"w": np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32), "b": np.ones(40, dtype=np.float32)}
CONFIGS = {
    "model.safetensors": ("config.json", {"model_type": "bert"}),
    "diffusion_pytorch_model.safetensors": ("config.json", {"_class_name": "UNet", "_diffusers_version": "0.30"}),
    "adapter_model.safetensors": ("adapter_config.json", {"peft_type": "LORA"}),
}


def make_source(folder, name="model.safetensors"):
    config, content = CONFIGS[name]
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "runs").mkdir()
    (folder / config).write_text(json.dumps(content))
    for text in ("tokenizer.json", "merges.txt", "spiece.model", "1_Pooling/config.json", "runs/log.txt", ".hidden"):
        (folder / text).write_text(text)
    for weights in ("pytorch_model.bin", "model.safetensors.index.json", "MODEL.ONNX"):
        (folder / weights).write_text("")
    save_file(TENSORS, folder / name)
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_gets_the_checkpoint_and_all_files_that_are_no_weights(name, tmp_path):
    """The checkpoint has the name that the config's library loads, and config, tokenizer and modules are copied."""
    source = make_source(tmp_path / "source", name)
    opq.compress(source / name, ratio=4).save(tmp_path / "m.opq")
    written = opq.expand(tmp_path / "m.opq", tmp_path / "v1.5", like=source)
    assert written.path == tmp_path / "v1.5" / name
    assert files(tmp_path / "v1.5") == {
        name, CONFIGS[name][0], "tokenizer.json", "merges.txt", "spiece.model", "1_Pooling/config.json",
    }  # fmt: skip
    with safe_open(written.path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == sorted(TENSORS)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_folder_of_the_file_is_the_default(name, tmp_path, capsys):
    """A .opq file that lies beside a config needs no `like`; its folder, or a folder in it, can be the output too."""
    source = make_source(tmp_path / "source", name)
    opq.compress(source / name, ratio=4).save(source / "m.opq")
    (source / name).unlink()
    assert main(["expand", str(source / "m.opq"), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == ""
    assert {name, CONFIGS[name][0], "tokenizer.json"} <= files(tmp_path / "out")
    before = files(source)
    opq.expand(source / "m.opq", source)
    assert files(source) == before | {name}
    (source / name).unlink()
    for _ in range(2):
        opq.expand(source / "m.opq", source / "quantized")
    assert files(source / "quantized") == files(tmp_path / "out")


def test_files_that_are_no_configs_decide_nothing(tmp_path, caplog):
    """A config of another program does not give the checkpoint its name; with `like` all files are copied nevertheless."""
    (tmp_path / "like").mkdir()
    for name in ("adapter_config.json", "config.json", "tokenizer.json"):
        (tmp_path / "like" / name).write_text("{}")
    data = opq.compress(TENSORS, ratio=4, metadata={"format": "mlx"}).data
    written = opq.expand(data, tmp_path / "out", like=tmp_path / "like")
    assert files(tmp_path / "out") == {"model.safetensors", "adapter_config.json", "config.json", "tokenizer.json"}
    assert "--like" in caplog.text
    with safe_open(written.path, "numpy") as file:
        assert file.metadata() == {"format": "mlx"}
    (tmp_path / "out" / "config.json").write_text('{"architectures": ["UNet"], "_class_name": "UNet"}')
    assert opq.expand(data, tmp_path / "out").path.name == "diffusion_pytorch_model.safetensors"


def test_without_a_config_only_the_checkpoint_is_written(tmp_path, caplog):
    """Files beside a .opq file are left alone if there is no config of a network, and a warning says what is missing."""
    (tmp_path / "config.json").write_text('{"port": 80}')
    opq.compress(TENSORS, ratio=4).save(tmp_path / "m.opq")
    with caplog.at_level(logging.WARNING, "opq"):
        opq.expand(tmp_path / "m.opq", tmp_path / "out")
    assert files(tmp_path / "out") == {"model.safetensors"}
    assert "--like" in caplog.text


def test_folders_are_not_replaced_unasked(tmp_path, capsys):
    """The original folder is never written to, and a folder with files only with --force."""
    source = make_source(tmp_path / "source")
    opq.compress(source / "model.safetensors", ratio=4).save(tmp_path / "m.opq")
    for file in (tmp_path / "m.opq", (tmp_path / "m.opq").read_bytes()):
        with pytest.raises(OutputError, match="the source"):
            opq.expand(file, source, like=source)
        with pytest.raises(SourceError, match="not a folder"):
            opq.expand(file, tmp_path / "out", like=tmp_path / "missing")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="only a folder"):
        opq.expand(tmp_path / "m.opq", tmp_path / "m.safetensors", like=source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("mine")
    command = ["expand", str(tmp_path / "m.opq"), "-o", str(tmp_path / "out"), "--like", str(source)]
    assert main(command) == 1
    assert "it has files; use --force" in capsys.readouterr().err
    with pytest.raises(OutputError, match="it has files; pass overwrite=True"):
        opq.expand(tmp_path / "m.opq", tmp_path / "out", like=source, overwrite=False)
    assert files(tmp_path / "out") == {"config.json"}
    assert (tmp_path / "out" / "config.json").read_text() == "mine"
    assert main([*command, "--force"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "bert"}
