"""Two networks of sound: the quality of speech, and the notes of music."""

from __future__ import annotations

import numpy as np
from zoo_networks.speech import conversations, songs

from unseen_networks.onnx_network import Findings, Values, package_file

SPEECH, MUSIC = 10, 48
"""Clips."""


class Dnsmos(Values):
    """The distance is in points of the mean opinion score, from 1 to 5."""

    measure_name = "points of MOS from dense"


def dnsmos() -> Dnsmos:
    """DNSMOS P.835 (Reddy et al., 2022), from speechmos: convolutions on a spectrum, and three scores for 9 s of speech."""
    sound = conversations(SPEECH, 10)[:, :144160].numpy()
    return Dnsmos("dnsmos", "speech quality", package_file("speechmos/dnsmos_models/sig_bak_ovr.onnx"), [{"input_1": sound}])


class Notes(Findings):
    """Where a note sounds."""

    threshold = 0.3


def basic_pitch() -> Notes:
    """Basic Pitch (Bittner et al., 2022): convolutions on a constant-Q transform, and the notes of 2 s of music."""
    sound = songs(MUSIC, 4).numpy()
    times = np.arange(43844) * 16000 / 22050
    resampled = np.stack([np.interp(times, np.arange(sound.shape[1]), clip) for clip in sound]).astype(np.float32)
    model = package_file("basic_pitch/saved_models/icassp_2022/nmp.onnx")
    batch = {"serving_default_input_2:0": resampled[..., None]}
    return Notes("basic_pitch", "music transcription", model, [batch], ["StatefulPartitionedCall:1"])
