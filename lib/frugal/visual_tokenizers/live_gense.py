"""The live run of GenSE: words, a voice and a noise of the reader's choice, or the reader's own 8 kHz WAV file, enhanced."""
import base64
import json
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from frugal.data.formant_speech import CLIP_SAMPLES, FRAME, NOISES, WORDS, Clip, Speaker, make_noise, mix, speak
from frugal.explore.theme import blank, escape
from frugal.visual_tokenizers.gense import load_gense
from frugal.visual_tokenizers.gense_audio import BINS, FLOOR_DB, SPAN_DB, check_audio, griffin_lim, log_mel, read_wav, wav_bytes
from frugal.visual_tokenizers.gense_judge import edits, load_judge, phonemes_of
from frugal.visual_tokenizers.gense_shown import SYSTEMS, Players, eight_bits, frames_of

VOICES = {"low": Speaker(105.0, 0.9, 2.0), "middle": Speaker(150.0, 1.0, 3.0), "high": Speaker(215.0, 1.15, 1.0)}
MOST = 5                                               # times 1.28 s that typed words may fill
NO_FILE = ""                                           # stands for "no file was chosen"


def check_words(text: str) -> None:
    """Raises ValueError for words that the synthesizer cannot say, or for more than it has room for."""
    words = text.split()
    unknown = [word for word in words if word not in WORDS]
    if unknown:
        raise ValueError(f"{', '.join(unknown[:5])}: no such words; there are: {' '.join(WORDS)}")
    if not 1 <= len(words) <= 4 * MOST - 5:
        raise ValueError(f"{len(words)} words; give 1 to {4 * MOST - 5}")


def say(words: list[str], speaker: Speaker) -> Clip:
    """All words, in a clip of 1.28 s or as long as they need. Raises ValueError when they need too long."""
    for samples in range(CLIP_SAMPLES, MOST * CLIP_SAMPLES + 1, 4 * FRAME):
        clip = speak(words, speaker, np.random.default_rng(0), samples)
        if len(clip.words) == len(words):
            return clip
    raise ValueError(f"{len(words)} words do not fit into {MOST * CLIP_SAMPLES / 8000:g} s; leave some out")


def enhance_own(inputs: dict[str, Any], progress: Callable) -> dict[str, Any]:
    """Enhances the reader's file, or the words in the noise. Raises ValueError for a file or words that cannot be used."""
    clip, clean = None, None
    if isinstance(inputs["wav"], str):
        check_words(inputs["words"])
        clip = say(inputs["words"].split(), VOICES[inputs["voice"]])
        noise = make_noise(inputs["noise"], np.random.default_rng(1), len(clip.audio))
        audio = torch.from_numpy(mix(clip.audio, noise, int(inputs["snr"])))
        clean = log_mel(check_audio(torch.from_numpy(clip.audio)))
    else:
        audio = torch.as_tensor(inputs["wav"])
    noisy = check_audio(audio)
    progress(0.3)
    system, (hierarchy, prompt) = _system(), SYSTEMS[inputs["system"]]
    made = system.enhance(noisy, hierarchy, prompt, temperature=float(inputs["temperature"])).mel
    progress(0.8)
    frames = {"noisy": log_mel(noisy), "enhanced": made} | ({} if clean is None else {"clean": clean})
    heard = {name: phonemes_of(load_judge().hear(mel)[0].argmax(-1).numpy()) for name, mel in frames.items()}
    sounds = {"noisy": wav_bytes(noisy[0], 8), "enhanced": wav_bytes(griffin_lim(made)[0], 8)}
    return {"mels": {name: mel[0] for name, mel in frames.items()}, "heard": heard, "said": None if clip is None else list(clip.phonemes), "sounds": sounds}


@lru_cache(maxsize=1)
def _system():
    return load_gense()


def three_spectrograms(result: dict[str, Any]) -> go.Figure:
    """Noisy, enhanced and, where it is known, clean frames, with the phonemes that the judge hears in each."""
    said, mels = result["said"], result["mels"]
    fig = blank("Enhanced" if said is None else f"Said: {escape(' '.join(said))}", "", "", height=160 + 170 * len(mels), showlegend=False)
    lines, step = [], 1 / len(mels)
    for place, (name, mel) in enumerate(mels.items(), 1):
        decibels = (mel.T * SPAN_DB + FLOOR_DB + 40).round().int().clamp(-128, 127)
        axis, heard = "" if place == 1 else str(place), result["heard"][name]
        fig.add_heatmap(z=decibels.numpy(), x=[round(0.02 * (i + 0.5), 3) for i in range(decibels.shape[1])], y=list(range(BINS)), name=name,
                        xaxis=f"x{axis}", yaxis=f"y{axis}", zmin=int(FLOOR_DB), zmax=-20, colorscale="Cividis", showscale=False, hovertemplate="%{x:.2f} s, bin %{y}: %{z} dB")
        wrong = "" if said is None else f" ({edits(said, heard)} of {len(said)} wrong)"
        lines.append(f"{name}: {' '.join(heard) or 'nothing'}{wrong}")
        top = 1 - step * (place - 1)
        fig.update_layout({f"yaxis{axis}": {"domain": [top - 0.75 * step, top], "anchor": f"x{axis}", "title": {"text": f"{name} (bin)"}},
                           f"xaxis{axis}": {"anchor": f"y{axis}", "domain": [0, 1], "showticklabels": False, "showgrid": False,
                                            "title": {"text": f"judge hears {escape(lines[-1])}", "font": {"size": 11}}}})
    return fig.update_layout(meta={"summary": f"The judge of clean speech hears {'; '.join(lines)}."})


def sounds_of(result: dict[str, Any] | None) -> Players:
    """Players of the last run. Raises ValueError when nothing has run yet."""
    if result is None:
        raise ValueError("nothing has run yet: press Run in the form first")
    return Players(result["sounds"], "your run")


def first_result() -> dict[str, Any]:
    """What the form's first inputs give, run now."""
    return enhance_own(dict(FIRST), lambda share: None)


def stored(result: dict[str, Any]) -> dict[str, Any]:
    """A result as plain JSON: recipes/record_gense.py keeps the first one."""
    mels = {name: base64.b64encode(eight_bits(mel).numpy().tobytes()).decode() for name, mel in result["mels"].items()}
    sounds = {name: base64.b64encode(content).decode() for name, content in result["sounds"].items()}
    return {**result, "mels": mels, "sounds": sounds}


def recorded_result() -> dict[str, Any]:
    """The stored result of the form's first inputs."""
    text = resources.files("frugal.visual_tokenizers").joinpath("assets/gense_live.json").read_text(encoding="utf-8")
    found = json.loads(text)
    mels = {name: torch.from_numpy(frames_of(mel).T.copy()) for name, mel in found["mels"].items()}
    return {**found, "mels": mels, "sounds": {name: base64.b64decode(content) for name, content in found["sounds"].items()}}


FIRST = {"words": "tise ma fex Sali", "voice": "middle", "noise": "babble", "snr": 5, "system": "two-stage", "temperature": 0, "wav": NO_FILE}


def checked_wav(content: bytes) -> np.ndarray:
    """Samples of a WAV file that can be enhanced. ValueError as read_wav and check_audio."""
    samples = read_wav(content)
    check_audio(samples)
    return samples


def inputs() -> dict[str, Any]:
    """The form: words, voice, noise and its ratio, the system, or an own file."""
    from frugal.explore import choice, file, text
    return {"words": text("Words", FIRST["words"], rows=1, max_chars=120, check=check_words),
            "voice": choice(list(VOICES), "Voice", default=FIRST["voice"]), "noise": choice(NOISES, "Noise", default=FIRST["noise"]),
            "snr": choice([-5, 0, 5, 10, 15], "SNR", "dB", FIRST["snr"]), "system": choice(list(SYSTEMS), "System"),
            "temperature": choice([0, 1], "Token taken", texts=["likeliest", "drawn"]), "wav": file("Your own WAV (8 kHz, mono), instead", (".wav",), value=NO_FILE, read=checked_wav)}
