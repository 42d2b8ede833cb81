"""`opq calibrate transformers:FOLDER`: a language model in a folder of transformers, and texts."""

import json

import pytest
import torch

import opq
import opq.torch
from opq.cli.main import main

WORDS = ("the", "a", "cat", "dog", "runs", "sleeps", "and", "then", "here", "there")


@pytest.fixture
def folder(tmp_path, monkeypatch, torchvision):
    """A folder with a small Llama, whose head is its embedding, and a tokenizer of whole words."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: number for number, word in enumerate((*WORDS, "?"))}, "?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(WORDS[at:] + WORDS[:at]) for at in range(10)) * 3, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--texts", "texts.txt"], []])
def test_a_language_model_is_calibrated_on_texts_or_its_own(folder, options, monkeypatch, capsys):
    """The command writes a file that loads into the network, within its target and with all weights."""
    monkeypatch.setattr("opq.calibration.synthetic_tokens.TEXTS", 16)
    monkeypatch.setattr("opq.calibration.synthetic_tokens.LENGTH", 24)
    assert main(["calibrate", "transformers:llama", *options, "--ratio", "4", "-o", "llama.opq"]) == 0
    network = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(folder / "llama")
    opq.torch.load_model(network, folder / "llama.opq")
    with opq.OpqFile(folder / "llama.opq") as file:
        assert sum(entry.is_weight for entry in file.entries) >= 15
    assert "4.0x smaller" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("transformers:missing --texts texts.txt", "must be a folder with a config.json"),
        ("transformers:empty --texts texts.txt", "no network 'transformers:empty'"),
        ("transformers:llama --texts missing.txt", "it must be a text file in UTF-8"),
        ("transformers:llama --texts blank.txt", "it holds no text"),
        ("transformers:llama --texts texts.txt --images synthetic", "give one of them"),
        ("network.py:make --texts texts.txt", "requires a MODEL of transformers"),
        ("network.py:make", "Give --images"),
    ],
)
def test_mistakes_end_in_one_line(folder, arguments, message, capsys):
    """Each mistake with folders and texts is named, and nothing is written."""
    (folder / "empty").mkdir()
    (folder / "empty" / "config.json").write_text(json.dumps({"model_type": "unheard of"}))
    (folder / "blank.txt").write_text("\n \n")
    (folder / "network.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Linear(8, 8)\n")
    assert main(["calibrate", *arguments.split(), "--ratio", "4", "-o", "a.opq"]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (folder / "a.opq").exists()
