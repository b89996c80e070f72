"""What judges enhanced speech: phoneme error, match of the voice, distance of log-mel frames; all against the ground truth.

Three small networks of their own, trained on other clips and with other seeds than any token or decoder: `strict` hears
phonemes and was trained on nearly clean speech (like a recognizer that has not met noise), `robust` the same with noise down
to -5 dB, `voice` tells pitch, formant scale and tilt.
The phoneme error rate is edits over phonemes said; the voice match is 1 - squared error over variance (1: the same voice,
0: no better than always saying the mean voice). The distance is in dB, after the best common gain.
"""
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from frugal.data.formant_speech import UNITS
from frugal.visual_tokenizers.gense_audio import BINS, SPAN_DB
from frugal.visual_tokenizers.gense_nets import Convs, load_net

JUDGES = ("strict", "robust")
SHORTEST_RUN = 2                                     # frames: shorter runs of a phoneme are taken as slips


class Judge(nn.Module):
    """Two hearers of phonemes and one of voices, over log-mel frames."""

    def __init__(self, width: int = 40):
        super().__init__()
        self.shape = {"width": width}
        self.strict, self.robust = (Convs(BINS, width, len(UNITS), (1, 2, 4, 1)) for _ in JUDGES)
        self.voice = Convs(BINS, width, 6, (1, 2, 1))

    def hear(self, mel: Float[Tensor, "b f 40"], judge: str = "strict") -> Float[Tensor, "b f units"]:
        """Phoneme logits of every frame. The clip's mean is taken off, so no judge depends on the level."""
        return getattr(self, judge)(mel - mel.mean((1, 2), keepdim=True))

    def speaker(self, mel: Float[Tensor, "b f 40"]) -> Float[Tensor, "b 3"]:
        """Pitch (log), formant scale and tilt, each from -1 to 1 over its range: a mean over frames, weighted by the network."""
        value, weight = self.voice(mel - mel.mean((1, 2), keepdim=True)).unflatten(-1, (2, 3)).unbind(-2)
        return (value * weight.softmax(1)).sum(1)


def phonemes_of(labels: np.ndarray) -> list[str]:
    """Phonemes of frame labels: runs of at least SHORTEST_RUN frames, silence left out."""
    found, start = [], 0
    for at in range(1, len(labels) + 1):
        if at == len(labels) or labels[at] != labels[start]:
            if labels[start] and at - start >= SHORTEST_RUN:
                found.append(UNITS[labels[start]])
            start = at
    return found


def edits(said: list[str] | tuple[str, ...], heard: list[str] | tuple[str, ...]) -> int:
    """Least number of replaced, missing and added phonemes (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def mel_distance(mel: Float[Tensor, "b f 40"], clean: Float[Tensor, "b f 40"]) -> Float[Tensor, "b"]:
    """Mean absolute difference in dB, after the gain that makes the median difference 0."""
    gap = (mel - clean).flatten(1) * SPAN_DB
    return (gap - gap.median(1, keepdim=True).values).abs().mean(1)


@torch.no_grad()
def judged(mel: Float[Tensor, "b f 40"], clips: list, clean: Float[Tensor, "b f 40"], judge: Judge) -> dict[str, np.ndarray]:
    """Per clip: phonemes said, edits by each hearer, squared error of the voice, distance (dB). clips: the ground truth."""
    found = {"said": np.array([len(clip.phonemes) for clip in clips])}
    for name in JUDGES:
        labels = judge.hear(mel, name).argmax(-1).numpy()
        found[f"edits_{name}"] = np.array([edits(clip.phonemes, phonemes_of(own)) for clip, own in zip(clips, labels)])
    truth = torch.from_numpy(np.stack([clip.speaker.standard() for clip in clips]))
    found["voice_error"] = (judge.speaker(mel) - truth).square().sum(-1).numpy()
    found["voice_spread"] = truth.square().sum(-1).numpy()                # the mean voice of an even draw is 0
    found["distance_db"] = mel_distance(mel, clean).numpy()
    return found


@lru_cache(maxsize=1)
def load_judge() -> Judge:
    """The trained judge. Raises WeightsError."""
    return load_net("gense_judge", Judge)
