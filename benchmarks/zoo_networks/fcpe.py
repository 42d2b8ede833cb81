"""FCPE (CNChTu, 2023), from the package torchfcpe: the pitch of a voice, in steps of 10 ms."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from zoo_networks.network import Network, package_file
from zoo_networks.speech import RATE, conversations, songs

CLIPS, SECONDS = 24, 8
"""Clips of speech, and as many of singing."""

BANDS, WINDOW, HOP = 128, 1024, 160
"""Bands of a mel spectrum, and samples of a window and between windows."""

VOICED = 0.006
"""Least confidence in a pitch."""


def fcpe() -> FCPE:
    """A convolutional conformer: pointwise convolutions of 512 channels, and depthwise ones of 31 weights a channel."""
    checkpoint = torch.load(package_file("torchfcpe/assets/fcpe_c_v001.pt"), map_location="cpu", weights_only=True)
    module = Conformer()
    module.load_state_dict(checkpoint["model"])
    sound = torch.cat([conversations(CLIPS, SECONDS), songs(CLIPS, SECONDS)])
    return FCPE(module, log_mel(sound).split(1))


class FCPE(Network):
    """The measure is the difference of the pitch from the dense network's, where that one hears a voice."""

    name = "fcpe"
    kind = "pitch estimator"
    measure_name = "cents from dense"
    higher_is_better = False

    def run(self, batch: Tensor) -> Tensor:
        """Confidence in each of 360 pitches, (clips, frames, 360)."""
        confidence: Tensor = self.module(batch)
        return confidence

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """Mean absolute difference over a clip's frames, in cents (1,200 are an octave)."""
        voiced = dense.amax(2) > VOICED
        difference = (self._cents(outputs) - self._cents(dense)).abs() * voiced
        return difference.sum(1) / voiced.sum(1)

    def _cents(self, confidence: Tensor) -> Tensor:
        """The mean pitch of the nine around the most confident one, weighted by confidence, (clips, frames)."""
        table: Tensor = self.module.get_buffer("cent_table")
        near = (confidence.argmax(2, keepdim=True) + torch.arange(-4, 5)).clamp(0, len(table) - 1)
        weights = confidence.gather(2, near)
        return (table[near] * weights).sum(2) / weights.sum(2)


class Conformer(nn.Module):
    """Logarithmic mel spectra (clips, frames, 128) to confidence in each of 360 pitches, (clips, frames, 360)."""

    def __init__(self, width: int = 512, layers: int = 6, pitches: int = 360) -> None:
        super().__init__()
        self.input_stack = nn.Sequential(
            nn.Conv1d(BANDS, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.LeakyReLU(),
            nn.Conv1d(width, width, 3, padding=1),
        )
        self.net = nn.ModuleDict({"encoder_layers": nn.ModuleList(Layer(width) for _ in range(layers))})
        self.norm = nn.LayerNorm(width)
        self.output_proj = weight_norm(nn.Linear(width, pitches))
        self.register_buffer("cent_table", torch.zeros(pitches))
        self.register_buffer("gaussian_blurred_cent_mask", torch.zeros(()))

    def forward(self, mel: Tensor) -> Tensor:
        """As the class says."""
        x = self.input_stack(mel.transpose(1, 2)).transpose(1, 2)
        for layer in self.net["encoder_layers"]:
            x = x + layer(x)
        confidence: Tensor = self.output_proj(self.norm(x)).sigmoid()
        return confidence


class Layer(nn.Module):
    """A gated pointwise, a depthwise and a pointwise convolution. `norm` is in the checkpoint, and not used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        depthwise = nn.ModuleDict({"conv": nn.Conv1d(inner, inner, 31, padding=15, groups=inner)})
        parts = {"0": nn.LayerNorm(width), "2": nn.Conv1d(width, 2 * inner, 1), "4": depthwise, "6": nn.Conv1d(inner, width, 1)}
        self.conformer = nn.ModuleDict({"net": nn.ModuleDict(parts)})
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(clips, frames, width) to the same."""
        parts = self.conformer["net"]
        y = nn.functional.glu(parts["2"](parts["0"](x).transpose(1, 2)), dim=1)
        y = parts["6"](nn.functional.silu(parts["4"]["conv"](y)))
        return y.transpose(1, 2)


def log_mel(sound: Tensor) -> Tensor:
    """Logarithms of the mel spectra of sound (clips, samples), (clips, frames, 128)."""
    path = package_file("torchfcpe/mel_fn_librosa.py")  # its package imports torchaudio
    spec = importlib.util.spec_from_file_location("mel_fn_librosa", path)
    filters = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(filters)
    bands = torch.from_numpy(filters.mel(sr=RATE, n_fft=WINDOW, n_mels=BANDS, fmin=0, fmax=RATE // 2))
    edge = (WINDOW - HOP) // 2
    padded = nn.functional.pad(sound[:, None], (edge, edge), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, WINDOW, HOP, window=torch.hann_window(WINDOW), center=False, return_complex=True)
    magnitude = (spectrum.real**2 + spectrum.imag**2 + 1e-9).sqrt()
    return (bands @ magnitude).clamp(min=1e-5).log().transpose(1, 2)
