"""Sound at 16 kHz: sentences that espeak-ng speaks, with silence and noise between and behind them; and synthetic singing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from images import cache_folder
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from zoo_networks.texts import sentences

RATE = 16_000
"""Samples per second."""

VOICES = ("en-us", "en-gb+f2", "en-us+m3", "en-gb+f4", "en-us+f3", "en-gb+m7")
SPOKEN = 120
"""Sentences."""

NOISE = (-60.0, -30.0, -15.0, -5.0, 0.0)
"""Levels of noise relative to the loudest sentence, in dB."""

Sound = NDArray[np.float32]
"""Samples from -1 to 1."""


def conversations(count: int, seconds: int, first: int = 0) -> Tensor:
    """Clips from number `first` on, in which sentences and pauses of 0.3 to 3 seconds alternate, float32 (count, samples).

    Behind them is noise at the levels of `NOISE`: white, pink, or of other voices.
    """
    voices = _spoken()
    clips = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        clip = np.zeros(seconds * RATE, np.float32)
        place = int(rng.uniform(0.3, 2.0) * RATE)
        while place < len(clip):
            sentence = voices[rng.integers(len(voices))] * 10.0 ** rng.uniform(-1.0, 0.0)
            end = min(place + len(sentence), len(clip))
            clip[place:end] = sentence[: end - place]
            place = end + int(rng.uniform(0.3, 3.0) * RATE)
        level = np.sqrt(np.mean(clip[clip != 0.0] ** 2)) * 10.0 ** (NOISE[number % len(NOISE)] / 20.0)
        noise = (_white, _pink, _babble)[number % 3](len(clip), rng)
        clips.append(_limited(clip + noise * level / np.sqrt(np.mean(noise**2))))
    return torch.from_numpy(np.stack(clips))


def songs(count: int, seconds: int, first: int = 0) -> Tensor:
    """Melodies, from number `first` on, of a synthetic voice with vibrato and breath, float32 (count, samples)."""
    clips = []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        pitch = _melody(seconds * RATE, rng)
        phase = 2.0 * np.pi * np.cumsum(pitch) / RATE
        formants = rng.uniform(0.8, 1.2) * np.array([600.0, 1200.0, 2600.0, 3500.0])
        clip = np.zeros(len(pitch))
        for harmonic in range(1, 30):
            frequency = harmonic * pitch
            loudness = sum(np.exp(-(((frequency - formant) / 300.0) ** 2)) for formant in formants) + 0.1
            clip += np.where(frequency < 7500.0, loudness / harmonic, 0.0) * np.sin(harmonic * phase)
        clip = 0.3 * clip / np.abs(clip).max() + 0.002 * _pink(len(clip), rng)
        clips.append(_limited(clip))
    return torch.from_numpy(np.stack(clips))


def _melody(length: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The pitch of each sample in Hz: notes of 0.3 to 1.2 seconds of a scale, that glide into each other, with vibrato."""
    low, notes = rng.uniform(90.0, 300.0), []
    while sum(map(len, notes)) < length:
        step = rng.choice([0, 2, 4, 7, 9, 12, 14])
        notes.append(np.full(int(rng.uniform(0.3, 1.2) * RATE), low * 2.0 ** (step / 12.0)))
    steps = np.log2(np.concatenate(notes)[:length])
    width = RATE // 20
    glided = np.convolve(np.pad(steps, (width, width), mode="edge"), np.ones(width) / width, mode="same")[width:-width]
    vibrato = rng.uniform(0.0, 40.0) / 1200.0 * np.sin(2.0 * np.pi * 5.5 * np.arange(length) / RATE)
    return 2.0 ** (glided + vibrato)


def _white(length: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal(length)


def _pink(length: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise whose power falls as 1 / frequency, from 20 Hz, of variance about 1."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(length, 1.0 / RATE), 20.0))
    noise = np.fft.irfft(spectrum, length)
    return noise / noise.std()


def _babble(length: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Eight voices at once, each of which repeats a sentence."""
    voices = _spoken()
    chosen = [voices[number] for number in rng.integers(len(voices), size=8)]
    return np.sum([np.roll(np.resize(voice, length), rng.integers(length)) for voice in chosen], axis=0)


def _limited(clip: NDArray[np.floating]) -> Sound:
    return (clip / max(1.0, np.abs(clip).max())).astype(np.float32)


def _spoken() -> list[Sound]:
    """Sentences of several voices, pitches and speeds. espeak-ng makes them once. Exits 1 if it is missing."""
    path = cache_folder() / "zoo_speech.npz"
    if not path.exists():
        if shutil.which("espeak-ng") is None:
            print("zoo_networks: espeak-ng is missing; install it (Debian: apt-get install espeak-ng)", file=sys.stderr)
            raise SystemExit(1)
        temporary = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, *(_speak(text, number) for number, text in enumerate(sentences(SPOKEN))))
        temporary.replace(path)
    with np.load(path) as arrays:
        return [arrays[f"arr_{number}"] for number in range(SPOKEN)]


def _speak(text: str, number: int) -> Sound:
    voice, speed, pitch = VOICES[number % len(VOICES)], 130 + number * 7 % 60, 30 + number * 11 % 50
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", path, text], check=True)
        rate, samples = wavfile.read(path)
    resampled = resample_poly(samples.astype(np.float64) / 2**15, RATE, rate)
    return _limited(0.5 * resampled / np.abs(resampled).max())
