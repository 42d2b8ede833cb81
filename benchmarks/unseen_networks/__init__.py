"""Networks that opq was not tuned on, from packages: none was compressed before opq's defaults were what they are.

`requirements/unseen.lock` lists the packages, which `make unseen-packages` installs. All are ONNX models; their measures
compare them with themselves, on pictures, sounds, texts and files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zoo_networks import Network

from unseen_networks import files, pictures, sounds, texts

__all__ = ["NETWORKS"]

NETWORKS: Mapping[str, Callable[[], Network]] = {
    "magika": files.magika,
    "nudenet": pictures.nudenet,
    "open_nsfw": pictures.open_nsfw,
    "text_detector": pictures.text_detector,
    "text_reader": pictures.text_reader,
    "captcha_reader": pictures.captcha_reader,
    "nakdimon": texts.nakdimon,
    "tashkeel": texts.tashkeel,
    "dnsmos": sounds.dnsmos,
    "basic_pitch": sounds.basic_pitch,
}
"""{name: function that loads it}. If packages or data that it needs are missing, it exits 1 and says so."""
