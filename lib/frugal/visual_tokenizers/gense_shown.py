"""A few noisy clips, what each system makes of them, and their sound: what the notebook shows of GenSE.

Recorded once (recipes/record_gense.py), so that picture and sound are the same everywhere. Sounds come from log-mel frames
by Griffin-Lim, the clean one too, so that they differ by their frames alone; the noisy clip is the mixture itself.
"""
import base64
import html
import io
import json
import wave
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from frugal.data.formant_speech import HELD_OUT, UNITS, make_clip, make_noise, mix
from frugal.visual_tokenizers.gense import GenSE
from frugal.visual_tokenizers.gense_audio import check_audio, griffin_lim, log_mel, wav_bytes

SHOWN = ((21, "white", 0), (22, "babble", 5), (24, "hum", 0))       # clip, noise, SNR in dB
SYSTEMS = {"two-stage": (True, True), "one-stage": (False, True), "no noisy prompt": (True, False)}
LOW, HIGH = -2.0, 1.0                                 # standard log-mel: ends of the 8-bit scale


def shown_clips(system: GenSE) -> list[dict[str, Any]]:
    """Clips with frames (8-bit, base64), tokens and sounds (WAV, base64) of every version."""
    found = []
    for number, noise, snr_db in SHOWN:
        clip = make_clip(HELD_OUT + number)
        noisy = torch.from_numpy(mix(clip.audio, make_noise(noise, np.random.default_rng(number)), snr_db))[None]
        clean = torch.from_numpy(clip.audio)[None]
        best, versions = None, {"noisy": version(log_mel(check_audio(noisy)), noisy)}
        for name, (hierarchy, prompt) in SYSTEMS.items():
            made = system.enhance(noisy, hierarchy, prompt, temperature=0.0)
            versions[name] = version(made.mel)
            best = made if name == "two-stage" else best
        clean_mel = log_mel(check_audio(clean))
        versions["clean"] = version(clean_mel)
        codes = {**{kind: c[0].tolist() for kind, c in best.codes.items()}, "true_semantic": system.semantic.encode(clean)[0].tolist(),
                 "true_acoustic": system.acoustic.encode(clean)[0].tolist()}
        found.append({"noise": noise, "snr_db": snr_db, "words": list(clip.words), "labels": [UNITS[i] for i in clip.labels[1::2]],
                      "versions": versions, "codes": codes})
    return found


def version(mel: Float[Tensor, "1 f 40"], audio: Tensor | None = None) -> dict[str, str]:
    """Frames and sound as text."""
    levels = eight_bits(mel[0])
    heard = griffin_lim(mel) if audio is None else audio
    return {"mel": base64.b64encode(levels.numpy().tobytes()).decode(), "wav": base64.b64encode(wav_bytes(heard[0], 8)).decode()}


def eight_bits(mel: Float[Tensor, "f 40"]) -> UInt8[Tensor, "f 40"]:
    """Standard log-mel frames in 256 levels."""
    return ((mel - LOW) / (HIGH - LOW) * 255).round().clamp(0, 255).to(torch.uint8)


def frames_of(text: str) -> np.ndarray:
    """(40, F) standard log-mel frames of a recorded version, lowest bin first."""
    levels = np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 40)
    return levels.T / 255 * (HIGH - LOW) + LOW


@lru_cache(maxsize=1)
def recorded_clips() -> list[dict[str, Any]]:
    """What recipes/record_gense.py stored."""
    text = resources.files("frugal.visual_tokenizers").joinpath("assets/gense_clips.json").read_text(encoding="utf-8")
    return json.loads(text)


class Players:
    """Labelled sound players, for the last line of a notebook cell; they stay in the saved notebook and its web page."""

    def __init__(self, sounds: dict[str, bytes], title: str = ""):
        for name, content in sounds.items():
            if content[:4] != b"RIFF":
                raise ValueError(f"sound {name!r} is no WAV file's bytes; make them with wav_bytes")
        self.sounds, self.title = sounds, title

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td>{html.escape(name)}</td><td><audio controls preload="none" aria-label="{html.escape(name)}" '
            f'src="data:audio/wav;base64,{base64.b64encode(content).decode()}"></audio></td></tr>'
            for name, content in self.sounds.items())
        return f"<table><caption>{html.escape(self.title)}</caption>{rows}</table>"

    def __repr__(self) -> str:
        long = ", ".join(f"{name} ({_seconds(content):.2f} s)" for name, content in self.sounds.items())
        return f"Players: {self.title}: {long}"


def _seconds(content: bytes) -> float:
    with wave.open(io.BytesIO(content)) as file:
        return file.getnframes() / file.getframerate()


def players(clip: int = 0) -> Players:
    """The versions of a recorded clip, to listen to. ValueError for a clip that was not recorded."""
    clips = recorded_clips()
    if not 0 <= clip < len(clips):
        raise ValueError(f"clip {clip}: allowed are 0 to {len(clips) - 1}")
    own = clips[clip]
    return Players({name: base64.b64decode(v["wav"]) for name, v in own["versions"].items()}, f"\"{' '.join(own['words'])}\", {own['noise']} at {own['snr_db']} dB")
