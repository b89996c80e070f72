"""Formant speech: a small synthetic language that is its own ground truth, at 8 kHz.

Sixteen phoneme-like units (formants, voicing, a band of noise) make 32 words; a speaker is a pitch, a factor on all
formants and a spectral tilt. A source (band-limited pulses and noise) is filtered frame by frame with the envelope of
the moment, so every frame's phoneme, every word and the speaker are known exactly. Noises: white, pink, babble, hum.

Source: source-filter model of Klatt, "Software for a cascade/parallel formant synthesizer" (1980), without its details.
Differs from recorded speech: one pronunciation a word, no prosody but a slow fall of the pitch, no room; a clip is 1.28 s.
"""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int
from numpy import ndarray

SAMPLE_RATE, FRAME = 8_000, 160                 # Hz; samples of a label frame: 50 frames/s
CLIP_SAMPLES = 64 * FRAME                       # 1.28 s
CONTROL, WINDOW, FFT = 80, 320, 512             # samples: step and length of a filter frame; bins of its transform
HELD_OUT = 2_000_000_000                        # first seed of the clips that no recipe trains on
LEVEL = 0.1                                     # RMS of a clip
NOISES = ("white", "pink", "babble", "hum")
_MANY = 4                                       # voices in a babble


@dataclass(frozen=True)
class Phoneme:
    """formants: F1-F3 in Hz. voice, hiss: gains of pulses and of noise. centre, width: the noise's band in Hz.
    length_s: shortest and longest. closure_s: silence before the burst of a stop."""
    formants: tuple[int, int, int]
    voice: float = 1.0
    hiss: float = 0.0
    centre: int = 2500
    width: int = 800
    length_s: tuple[float, float] = (0.07, 0.13)
    closure_s: float = 0.0


PHONEMES: dict[str, Phoneme] = {
    "a": Phoneme((760, 1250, 2500)), "e": Phoneme((500, 1850, 2550)), "i": Phoneme((290, 2250, 3000)),
    "o": Phoneme((480, 850, 2400)), "u": Phoneme((310, 720, 2250)), "x": Phoneme((500, 1450, 2400)),
    "m": Phoneme((250, 1000, 2200), 0.35, length_s=(0.06, 0.1)), "n": Phoneme((250, 1600, 2600), 0.35, length_s=(0.06, 0.1)),
    "l": Phoneme((360, 1100, 2750), 0.6, length_s=(0.06, 0.1)), "j": Phoneme((270, 2100, 2900), 0.6, length_s=(0.06, 0.1)),
    "s": Phoneme((300, 1700, 2700), 0.0, 0.5, 3700, 450), "S": Phoneme((300, 1800, 2500), 0.0, 0.6, 2500, 450),
    "f": Phoneme((300, 1100, 2200), 0.0, 0.22, 1600, 1500), "z": Phoneme((280, 1700, 2700), 0.4, 0.3, 3600, 450),
    "t": Phoneme((300, 1700, 2700), 0.0, 0.8, 3200, 700, (0.06, 0.09), 0.035),
    "k": Phoneme((300, 1500, 2300), 0.0, 0.8, 1600, 400, (0.06, 0.09), 0.035),
}
UNITS = ("_", *PHONEMES)                        # label 0 is silence
WORDS = (
    "ma", "nol", "tise", "kun", "Sali", "fex", "zoto", "jam", "lusi", "kef", "tanu", "soS", "mik", "loja", "Sef", "nuza",
    "talo", "sim", "kexo", "fun", "zali", "jome", "latik", "Su", "tox", "meS", "nika", "saf", "kolu", "fize", "junas", "xle",
)


@dataclass(frozen=True)
class Speaker:
    """pitch_hz: 90 to 240. formant_scale: 0.85 (a long vocal tract) to 1.2. tilt_db: 0 to 6, fall per octave above 500 Hz."""
    pitch_hz: float
    formant_scale: float
    tilt_db: float

    def __post_init__(self):
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} {getattr(self, name)} is out of range: give {low} to {high}")

    def standard(self) -> Float32[ndarray, "3"]:
        """(pitch in log, formant scale, tilt), each from -1 to 1 over its range."""
        low, high = np.array(list(RANGES.values())).T
        low[0], high[0], value = np.log(low[0]), np.log(high[0]), [np.log(self.pitch_hz), self.formant_scale, self.tilt_db]
        return (2 * (np.array(value) - low) / (high - low) - 1).astype(np.float32)


RANGES = {"pitch_hz": (90.0, 240.0), "formant_scale": (0.85, 1.2), "tilt_db": (0.0, 6.0)}


@dataclass(frozen=True)
class Clip:
    """audio: at SAMPLE_RATE, RMS LEVEL. labels: place in UNITS of every 20 ms frame. words, phonemes: what is said."""
    audio: Float32[ndarray, "samples"]
    labels: Int[ndarray, "frames"]
    words: tuple[str, ...]
    phonemes: tuple[str, ...]
    speaker: Speaker


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """A speaker, even over the ranges (pitch even in its logarithm)."""
    u = rng.random(3)
    (p0, p1), (s0, s1), (t0, t1) = RANGES.values()
    return Speaker(float(min(max(p0 * (p1 / p0) ** u[0], p0), p1)), float(s0 + (s1 - s0) * u[1]), float(t0 + (t1 - t0) * u[2]))


def make_clip(seed: int, samples: int = CLIP_SAMPLES) -> Clip:
    """Clip number `seed`: a drawn speaker says drawn words until the clip is full (the last word may be cut off whole)."""
    rng = np.random.default_rng(seed)
    speaker = draw_speaker(rng)
    return speak([WORDS[i] for i in rng.integers(len(WORDS), size=12)], speaker, rng, samples)


def speak(words: list[str], speaker: Speaker, rng: np.random.Generator, samples: int = CLIP_SAMPLES) -> Clip:
    """The words said by the speaker; those that do not fit whole are left out.

    Raises ValueError for a word that is not in WORDS, none at all, or `samples` that is no multiple of FRAME.
    """
    unknown = [word for word in words if word not in WORDS]
    if unknown or not words:
        raise ValueError(f"words {unknown or words}: give one or more of {', '.join(WORDS)}")
    if samples <= 0 or samples % FRAME:
        raise ValueError(f"samples {samples} must be a positive multiple of {FRAME}")
    units, lengths, said = _plan(words, rng, samples // CONTROL)
    tracks = _tracks(units, lengths, samples // CONTROL)
    audio = _sound(tracks, speaker, rng, samples)
    labels = np.repeat(units, lengths)[1::FRAME // CONTROL].astype(np.int64)
    phonemes = tuple(letter for word in said for letter in word)
    return Clip((LEVEL * audio / np.sqrt(np.mean(audio**2))).astype(np.float32), labels, tuple(said), phonemes, speaker)


def _plan(words: list[str], rng: np.random.Generator, steps: int) -> tuple[ndarray, ndarray, list[str]]:
    """Units, their lengths in control steps, and the words that fit; silence fills up the rest."""
    units, lengths, said = [0], [int(rng.integers(4, 9))], []
    for word in words:
        own = [max(6, round(rng.uniform(*PHONEMES[letter].length_s) * SAMPLE_RATE / CONTROL)) for letter in word]
        gap = int(rng.integers(2, 8))
        if sum(lengths) + sum(own) + 3 > steps:
            break
        said.append(word)
        units += [*(UNITS.index(letter) for letter in word), 0]
        lengths += [*own, gap]
    lengths[-1] += steps - sum(lengths)
    return np.array(units), np.array(lengths), said


def _tracks(units: ndarray, lengths: ndarray, steps: int) -> dict[str, ndarray]:
    """Formants, gains and the noise band at every control step, smoothed over 50 ms (gains 30 ms): coarticulation."""
    rest = Phoneme((500, 1500, 2500), 0.0, 0.0)
    found = [rest if unit == 0 else PHONEMES[UNITS[unit]] for unit in units]
    raw = {"f1": [p.formants[0] for p in found], "f2": [p.formants[1] for p in found], "f3": [p.formants[2] for p in found],
           "voice": [p.voice for p in found], "hiss": [p.hiss for p in found], "centre": [p.centre for p in found],
           "width": [p.width for p in found]}  # fmt: skip
    tracks = {name: np.repeat(np.array(values, float), lengths) for name, values in raw.items()}
    ends = np.cumsum(lengths)
    for p, start in zip(found, ends - lengths):
        closed = round(p.closure_s * SAMPLE_RATE / CONTROL)
        tracks["hiss"][start:start + closed] = 0.0
    for name, track in tracks.items():
        if name not in ("centre", "width"):
            size = 3 if name in ("voice", "hiss") else 5
            tracks[name] = np.convolve(np.pad(track, size // 2, mode="edge"), np.ones(size) / size, "valid")
    return {name: track[:steps] for name, track in tracks.items()}


def _sound(tracks: dict[str, ndarray], speaker: Speaker, rng: np.random.Generator, samples: int) -> ndarray:
    """Pulses and noise, filtered with the envelope of each control step, overlap-added."""
    drift = 1 - 0.12 * np.linspace(0, 1, samples) + 0.02 * np.sin(2 * np.pi * (5 * np.arange(samples) / SAMPLE_RATE + rng.random()))
    pitch = speaker.pitch_hz * drift
    phase = np.cumsum(pitch / SAMPLE_RATE)
    order = 2 * int(3800 / speaker.pitch_hz) + 1                         # all harmonics up to 3.8 kHz
    below = np.sin(np.pi * phase)
    pulses = np.where(np.abs(below) < 1e-6, 1.0, np.sin(np.pi * order * phase) / (order * np.where(np.abs(below) < 1e-6, 1, below)))
    voiced = _frames((pulses - pulses.mean()).astype(np.float32)) * _window()
    hissed = _frames(0.2 * rng.standard_normal(samples).astype(np.float32)) * _window()
    spectrum = np.fft.rfft(voiced, FFT) * _resonances(tracks, speaker) + np.fft.rfft(hissed, FFT) * _band(tracks, speaker)
    pieces = np.fft.irfft(spectrum, FFT)[:, :WINDOW] * _window()
    out = np.zeros(samples + WINDOW)
    for part in range(WINDOW // CONTROL):                                # frames that do not overlap, in one go each
        own = pieces[part::WINDOW // CONTROL]
        flat = own.reshape(-1)
        out[part * CONTROL:part * CONTROL + len(flat)] += flat
    return out[WINDOW // 2:WINDOW // 2 + samples] + 1e-5 * rng.standard_normal(samples)


def _frames(signal: ndarray) -> ndarray:
    """(steps, WINDOW): the frame of step i is centred on its first sample."""
    padded = np.pad(signal, WINDOW // 2)
    return np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[:len(signal):CONTROL]


@lru_cache(maxsize=1)
def _window() -> ndarray:
    return np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW).astype(np.float32)


def _resonances(tracks: dict[str, ndarray], speaker: Speaker) -> ndarray:
    """Voiced envelope (steps, bins): three resonances in a row, gain 1 at 0 Hz, then the tilt."""
    freq = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)[None]
    gain = np.ones((len(tracks["f1"]), freq.shape[1]))
    for name, band in (("f1", 90), ("f2", 110), ("f3", 160)):
        centre = speaker.formant_scale * tracks[name][:, None]
        gain *= centre**2 / np.sqrt((centre**2 - freq**2) ** 2 + (band * freq) ** 2 + 1)
    octaves = np.log2(np.maximum(freq, 500) / 500)
    return gain * 10 ** (-speaker.tilt_db * octaves / 20) * tracks["voice"][:, None] * (1 + octaves) * np.minimum(1, freq / 120)


def _band(tracks: dict[str, ndarray], speaker: Speaker) -> ndarray:
    """Envelope of the noise (steps, bins): one bump, moved by half of the speaker's formant factor."""
    freq = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)[None]
    centre, width = np.sqrt(speaker.formant_scale) * tracks["centre"][:, None], tracks["width"][:, None]
    return np.exp(-0.5 * ((freq - centre) / width) ** 2) * tracks["hiss"][:, None]


def make_noise(kind: str, rng: np.random.Generator, samples: int = CLIP_SAMPLES, voices: Float32[ndarray, "clips n"] | None = None
               ) -> Float32[ndarray, "samples"]:
    """A noise of RMS 1. babble sums four clips drawn from `voices`, each shifted; without them it makes its own.

    Raises ValueError for a kind that is not in NOISES.
    """
    if kind == "white":
        found = rng.standard_normal(samples)
    elif kind == "pink":
        spectrum = np.fft.rfft(rng.standard_normal(samples))
        found = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 8)), samples)
    elif kind == "hum":
        time, base = np.arange(samples) / SAMPLE_RATE, rng.uniform(48, 62)
        found = sum(rng.uniform(0.2, 1) / k**0.5 * np.sin(2 * np.pi * (k * base * time + rng.random())) for k in range(1, 24, 2))
        found = found + 0.1 * found.std() * rng.standard_normal(samples)
    elif kind == "babble":
        drawn = ([make_clip(int(seed), samples).audio for seed in rng.integers(1 << 30, size=_MANY)] if voices is None
                 else [voices[i][:samples] for i in rng.integers(len(voices), size=_MANY)])
        found = sum(np.roll(voice, int(shift)) for voice, shift in zip(drawn, rng.integers(samples, size=_MANY)))
    else:
        raise ValueError(f"noise {kind!r}: allowed are {', '.join(NOISES)}")
    return (found / np.sqrt(np.mean(found**2) + 1e-12)).astype(np.float32)


def mix(clean: Float32[ndarray, "samples"], noise: Float32[ndarray, "samples"], snr_db: int | float) -> Float32[ndarray, "samples"]:
    """clean + noise, the noise scaled so that power of clean over power of noise is `snr_db` over the clip."""
    power = np.mean(clean**2) / max(float(np.mean(noise**2)), 1e-12)
    return (clean + noise * np.sqrt(power * 10 ** (-snr_db / 10))).astype(np.float32)
