"""Two networks that write the vowels of a language: Nakdimon for Hebrew, and libtashkeel for Arabic, both from piper-tts.

Their inputs are the translated messages of Django.
"""

from __future__ import annotations

import json
import re

import numpy as np
import torch
from torch import Tensor

from unseen_networks.onnx_network import Decisions, package_file

TEXTS, LENGTH = 120, 64
"""Texts of each language, and their characters."""

_NAKDIMON = ["", "H", "O", "5", *" !\"'(),-.:;?", *map(chr, range(0x05D0, 0x05EB))]
_FINAL_LETTERS = dict(zip("ךםןףץ", "כמנפצ", strict=True))


def nakdimon() -> Nakdimon:
    """An LSTM on characters, with three decisions for each."""
    ids = {character: number for number, character in enumerate(_NAKDIMON)}
    rows = [[ids.get(_FINAL_LETTERS.get(letter, letter), ids["O"]) for letter in text] for text in _texts("he")]
    batch = {"input_1": np.array(rows, np.float32)}
    return Nakdimon("nakdimon", "Hebrew vowels", package_file("piper/hebrew/nakdimon.onnx"), [batch], ["N", "D", "S"])


class Nakdimon(Decisions):
    """The classes of its three decisions are side by side."""

    _CLASSES = (16, 3, 4)

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """The mean of the three agreements, in percent."""
        parts = zip(outputs.split(self._CLASSES, -1), dense.split(self._CLASSES, -1), strict=True)
        return torch.stack([super(Nakdimon, self).scores(*part) for part in parts]).mean(0)


def tashkeel() -> Decisions:
    """A transformer on characters."""
    ids = json.loads(package_file("piper/tashkeel/input_id_map.json").read_text(encoding="utf-8"))
    texts = _texts("ar", "".join(ids))
    characters = np.array([[ids[letter] for letter in text] for text in texts], np.int64)
    batch = {
        "char_inputs": characters,
        "diac_inputs": np.zeros_like(characters),
        "input_lengths": np.full(len(characters), LENGTH, np.int64),
    }
    return Decisions("tashkeel", "Arabic vowels", package_file("piper/tashkeel/model.onnx"), [batch], ["logits"])


def _texts(language: str, alphabet: str | None = None) -> list[str]:
    """Texts of LENGTH characters, those of the alphabet if there is one."""
    catalogs = sorted(package_file("django").glob(f"**/locale/{language}/LC_MESSAGES/django.po"))
    lines = [line for path in catalogs for line in path.read_text(encoding="utf-8").splitlines()]
    messages = [match[1] for line in lines if (match := re.fullmatch(r'(?:msgstr(?:\[\d\])? )?"(.*)"', line))]
    letters = r"[\u0590-\u05ff]" if language == "he" else r"[\u0600-\u06ff]"
    whole = " ".join(re.sub(r"%\(\w+\)s|%[sd]|<[^>]*>|\\n|\\", "", text) for text in messages if re.search(letters, text))
    whole = "".join(letter for letter in whole if alphabet is None or letter in alphabet)
    return [whole[start : start + LENGTH] for start in range(0, len(whole) - LENGTH, LENGTH)][:TEXTS]
