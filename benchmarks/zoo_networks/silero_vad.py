"""Silero VAD at 16 kHz (Silero Team, 2020 to 2026), from the package silero-vad: where speech is, in steps of 32 ms."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from zoo_networks.network import Network, package_file
from zoo_networks.speech import conversations

CLIPS, SECONDS = 45, 12
FRAME, CONTEXT, PADDING = 512, 64, 64
"""Samples of a frame; samples before it that its convolutions also see; samples that are mirrored behind it."""


def silero_vad() -> SileroVAD:
    """Convolutions on a spectrum, which is itself a convolution, and an LSTM cell."""
    module = Detector()
    module.load_state_dict(load_file(package_file("silero_vad/data/silero_vad_16k.safetensors")))
    return SileroVAD(module, [conversations(CLIPS, SECONDS)])


class SileroVAD(Network):
    """The measure is the agreement of the decisions, speech or not, with those of the dense network."""

    name = "silero_vad"
    kind = "speech detector"
    measure_name = "decisions as dense, %"

    def run(self, batch: Tensor) -> Tensor:
        """Probabilities of speech, (clips, frames)."""
        probabilities: Tensor = self.module(batch)
        return probabilities

    def scores(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """The percentage of a clip's frames on which both decide the same."""
        return 100.0 * ((outputs > 0.5) == (dense > 0.5)).double().mean(1)

    def divergence(self, outputs: Tensor, dense: Tensor) -> float:
        """Mean over frames, of two classes."""
        p, q = (values.double().clamp(1e-6, 1.0 - 1e-6) for values in (dense, outputs))
        return (p * (p / q).log() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).log()).mean().item()


class Detector(nn.Module):
    """Sound (clips, samples), float32 at 16 kHz, to probabilities of speech (clips, frames)."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> Tensor:
        """All frames at once, then the cell frame by frame."""
        frames = functional.pad(sound, (CONTEXT, 0)).unfold(1, CONTEXT + FRAME, FRAME)
        x = functional.pad(frames.flatten(0, 1)[:, None], (0, PADDING), mode="reflect")
        real, imaginary = self.stft_conv(x).chunk(2, dim=1)
        x = (real**2 + imaginary**2).sqrt()
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = functional.relu(convolution(x))
        features = x.squeeze(2).unflatten(0, frames.shape[:2])
        state, outputs = None, []
        for number in range(features.shape[1]):
            state = self.lstm_cell(features[:, number], state)
            outputs.append(state[0])
        hidden = torch.stack(outputs, dim=2)
        return self.final_conv(functional.relu(hidden)).sigmoid().squeeze(1)
