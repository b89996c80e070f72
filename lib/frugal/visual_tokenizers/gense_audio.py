"""Sound in and out for GenSE: checked clips, log-mel frames, Griffin-Lim, WAV bytes.

Source: arXiv 2502.02942, section 3 (codec and feature extractor work on waveforms). Griffin and Lim, "Signal estimation
from modified short-time Fourier transform" (1984), equation 13, for sound from a log-mel picture.
Differs: the codec here ends in log-mel frames, not in a waveform; sound is for listening only and no score uses it.
Shapes: B clips, n samples, F = n / 160 frames (50/s), 40 mel bins.
"""
import io
import warnings
import wave
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.io import wavfile
from torch import Tensor

from frugal.data.formant_speech import FRAME, LEVEL, SAMPLE_RATE

BINS, WINDOW, FFT = 40, 400, 512                     # mel bins; samples of a frame, of its transform
FLOOR_DB, SPAN_DB = -75.0, 20.0                      # dB that are taken as nothing; dB of one unit of the standard scale
TOKEN = 2 * FRAME                                    # samples of a token: 25/s
SHORTEST, LONGEST = 4 * TOKEN, 10 * SAMPLE_RATE      # samples


def check_audio(audio: object, rate: int = SAMPLE_RATE) -> Float[Tensor, "b n"]:
    """Audio as float clips of RMS LEVEL, each cut to whole tokens of 40 ms.

    audio: (n,) or (B, n), floats. Raises ValueError for another rate, more than one channel, NaN, silence, fewer than
    0.16 s or more than 10 s.
    """
    found = torch.as_tensor(np.asarray(audio)) if not isinstance(audio, Tensor) else audio
    if rate != SAMPLE_RATE:
        raise ValueError(f"audio at {rate} Hz: only {SAMPLE_RATE} Hz is taken; resample it, e.g. scipy.signal.resample_poly")
    if not found.is_floating_point():
        raise ValueError(f"audio of type {found.dtype}: give floats, e.g. 16-bit samples divided by 32768")
    if found.ndim not in (1, 2) or (found.ndim == 2 and found.shape[1] < SHORTEST and found.shape[0] > found.shape[1]):
        raise ValueError(f"audio of shape {tuple(found.shape)}: give one channel, (samples,) or (clips, samples); for stereo "
                         "take the mean of the channels")
    found = found.float().reshape(-1, found.shape[-1])
    if not SHORTEST <= found.shape[1] <= LONGEST:
        raise ValueError(f"audio of {found.shape[1] / SAMPLE_RATE:.2f} s: give {SHORTEST / SAMPLE_RATE:g} to "
                         f"{LONGEST / SAMPLE_RATE:g} s; cut it, or fill it up with silence")
    if not found.isfinite().all():
        raise ValueError("audio holds NaN or infinite samples; replace them, e.g. with numpy.nan_to_num")
    rms = found.square().mean(-1, keepdim=True).sqrt()
    if float(rms.min()) < 1e-5:
        raise ValueError(f"audio is silent (RMS {float(rms.min()):.1e}; at least 1e-05 is needed): is the right channel chosen?")
    return (found * (LEVEL / rms))[:, :found.shape[1] // TOKEN * TOKEN]


def log_mel(audio: Float[Tensor, "b n"]) -> Float[Tensor, "b f 40"]:
    """Standard log-mel frames: 0 at FLOOR_DB + 40 dB, one unit is SPAN_DB; frame i is centred on sample 160 i + 80."""
    return standard(spectra(audio).abs().square() @ mel_weights().T)


def standard(power: Float[Tensor, "*b 40"]) -> Float[Tensor, "*b 40"]:
    """Mel powers on the standard scale."""
    return (10 * torch.log10(power + 10 ** (FLOOR_DB / 10)) - FLOOR_DB - 40) / SPAN_DB


def powers(mel: Float[Tensor, "*b 40"]) -> Float[Tensor, "*b 40"]:
    """The inverse of `standard`, never below 0."""
    return (10 ** ((mel * SPAN_DB + FLOOR_DB + 40) / 10) - 10 ** (FLOOR_DB / 10)).clamp(min=0)


def spectra(audio: Float[Tensor, "b n"]) -> Tensor:
    """Complex short-time spectra (B, F, FFT // 2 + 1), scaled so that the powers of a frame sum to its mean square or so."""
    left = (WINDOW - FRAME) // 2
    frames = torch.nn.functional.pad(audio, (left, left)).unfold(-1, WINDOW, FRAME) * _hann()
    return torch.fft.rfft(frames, FFT) / WINDOW


def sound(frames: Tensor, samples: int) -> Float[Tensor, "b n"]:
    """Least-squares waveform of complex spectra."""
    pieces = torch.fft.irfft(frames * WINDOW, FFT)[..., :WINDOW] * _hann()
    left = (WINDOW - FRAME) // 2
    fold = torch.nn.functional.fold(pieces.transpose(1, 2), (1, samples + 2 * left), (1, WINDOW), stride=(1, FRAME))
    weight = _hann().square().expand(1, frames.shape[1], -1).transpose(1, 2)
    total = torch.nn.functional.fold(weight, (1, samples + 2 * left), (1, WINDOW), stride=(1, FRAME))
    return (fold / total.clamp(min=1e-3))[:, 0, 0, left:left + samples]


def griffin_lim(mel: Float[Tensor, "b f 40"], rounds: int = 40, seed: int = 0) -> Float[Tensor, "b n"]:
    """A waveform whose log-mel is near `mel`: start from random phases, then keep the size and take the phase of what the
    waveform gives. For listening."""
    size = (powers(mel.float()) @ mel_weights() / mel_weights().sum(0).clamp(min=1e-3)).sqrt()
    size = size * (powers(mel).sum(-1, keepdim=True) / (size.square() @ mel_weights().T).sum(-1, keepdim=True).clamp(min=1e-12)).sqrt()
    phase = torch.rand(size.shape, generator=torch.Generator().manual_seed(seed)) * 2 * torch.pi
    frames, samples = torch.polar(size, phase), mel.shape[1] * FRAME
    for _ in range(rounds):
        again = spectra(sound(frames, samples))
        frames = size * again / again.abs().clamp(min=1e-9)
    return sound(frames, samples)


@lru_cache(maxsize=1)
def mel_weights() -> Float[Tensor, "40 bins"]:
    """Triangles, even on the mel scale from 60 Hz to 4 kHz; each at least one bin wide."""
    edges = 700 * (10 ** (torch.linspace(_mel(60.0), _mel(4000.0), BINS + 2, dtype=torch.float64) / 2595) - 1)
    freq = torch.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    up, down = (freq - low) / (mid - low), (high - freq) / (high - mid)
    return torch.minimum(up, down).clamp(min=0).float()


def mel_centres() -> list[float]:
    """Centre of each mel bin in Hz."""
    weights = mel_weights()
    return ((weights @ (torch.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT)) / weights.sum(1)).tolist()


def _mel(hz: float) -> float:
    return 2595 * float(np.log10(1 + hz / 700))


@lru_cache(maxsize=1)
def _hann() -> Float[Tensor, "window"]:
    return torch.hann_window(WINDOW)


def read_wav(content: bytes) -> Float[ndarray, "n"]:
    """Mono samples in [-1, 1] of an 8 kHz WAV file's bytes.

    Raises ValueError when it is no WAV file, is stereo or has another rate; the message says how to convert it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)    # chunks that hold no sound
            rate, data = wavfile.read(io.BytesIO(content))
    except Exception as error:                          # the reader raises many kinds for damaged files
        raise ValueError(f"it is no WAV file, or a damaged one ({error}); save it as uncompressed WAV") from error
    if data.ndim != 1:
        raise ValueError(f"it has {data.shape[1]} channels; only one is taken: save it as mono")
    if rate != SAMPLE_RATE:
        raise ValueError(f"it is sampled at {rate} Hz; only {SAMPLE_RATE} Hz is taken: resample it")
    scale = {"uint8": 128.0, "int16": 2.0**15, "int32": 2.0**31}.get(str(data.dtype), 1.0)
    return ((data.astype(np.float32) - (128 if data.dtype == np.uint8 else 0)) / np.float32(scale)).astype(np.float32)


def wav_bytes(audio: Float[Tensor, "n"] | Float[ndarray, "n"], bits: int = 16) -> bytes:
    """Mono WAV of the samples with 16 or 8 bits each, scaled to a peak of 0.9. Raises ValueError for other bits."""
    if bits not in (8, 16):
        raise ValueError(f"bits {bits}: allowed are 8 and 16")
    samples = np.asarray(audio, np.float32)
    samples = samples / max(float(np.abs(samples).max()), 1e-9) * 0.9
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(bits // 8)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.round(samples * 32767).astype("<i2") if bits == 16 else np.round(samples * 127 + 128).astype(np.uint8)).tobytes())
    return out.getvalue()
