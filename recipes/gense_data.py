"""Clips and noisy mixtures for train_gense.py: made by seed, kept as 16-bit samples in the work folder."""
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from frugal.data.formant_speech import LEVEL, NOISES, make_clip, make_noise, mix
from frugal.visual_tokenizers.gense_audio import log_mel

SNR_DB = (-5.0, 15.0)


class Pool:
    """`count` clean clips: audio (N, n), labels (N, F) and speakers (N, 3) from -1 to 1."""

    def __init__(self, count: int, first: int = 0, folder: Path | None = None):
        path = None if folder is None else folder / f"clips_{first}_{count}.safetensors"
        if path is None or not path.exists():
            made = self._make(count, first)
            if path is not None:
                folder.mkdir(parents=True, exist_ok=True)
                save_file(made, path.with_suffix(f".{os.getpid()}"))
                os.replace(path.with_suffix(f".{os.getpid()}"), path)
        else:
            made = load_file(path)
        self.audio = made["audio"].astype(np.float32) / 16384
        self.labels, self.speakers = torch.from_numpy(made["labels"]), torch.from_numpy(made["speakers"])

    @staticmethod
    def _make(count: int, first: int) -> dict[str, np.ndarray]:
        clips = [make_clip(first + i) for i in tqdm(range(count), desc="clips", disable=None)]
        return {"audio": np.stack([np.round(clip.audio.clip(-1.9, 1.9) * 16384).astype(np.int16) for clip in clips]),
                "labels": np.stack([clip.labels for clip in clips]), "speakers": np.stack([clip.speaker.standard() for clip in clips])}

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(len(self.audio), size=count)

    def noisy(self, index: np.ndarray, rng: np.random.Generator, snr_db: tuple[float, float] = SNR_DB) -> torch.Tensor:
        """Log-mel frames of clips with a drawn noise at a drawn ratio, at the level of speech."""
        made = []
        for i in index:
            noise = make_noise(NOISES[rng.integers(len(NOISES))], rng, self.audio.shape[1], self.audio)
            made.append(mix(self.audio[i], noise, rng.uniform(*snr_db)))
        made = torch.from_numpy(np.stack(made))
        return log_mel(made * (LEVEL / made.square().mean(-1, keepdim=True).sqrt()))

    def clean(self, index: np.ndarray) -> torch.Tensor:
        """Log-mel frames of the clips as they are."""
        return log_mel(torch.from_numpy(self.audio[index]))

    def digest(self) -> str:
        """What the card calls the data hash: of the first 64 clips' labels and speakers."""
        parts = self.labels[:64].numpy().tobytes() + np.round(self.speakers[:64].numpy(), 4).tobytes()
        return hashlib.sha256(parts).hexdigest()[:16]
