"""What recipes/record_gense.py records: scores by SNR, differences with intervals, what tokens carry, and what each stage costs.

Held-out clips, the same noise for every method; intervals are over clips (core.bootstrap), differences are paired.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.bootstrap import interval
from frugal.core.measure import compare, counted_flops
from frugal.data.formant_speech import HELD_OUT, NOISES, SAMPLE_RATE, Clip, make_clip, make_noise, mix
from frugal.visual_tokenizers.gense import PARTS, GenSE
from frugal.visual_tokenizers.gense_audio import check_audio, log_mel
from frugal.visual_tokenizers.gense_baselines import Regression, spectral_subtraction
from frugal.visual_tokenizers.gense_judge import Judge, judged

SNRS = (-5, 0, 5, 10, 15)
SCORES = {"edits_strict": "phoneme error rate (%), judge of clean speech", "edits_robust": "phoneme error rate (%), judge used to noise",
          "voice": "voice match (1: the same, 0: the mean voice)", "distance_db": "log-mel distance (dB)"}
GENERATED_BY = {"two-stage": (True, True), "one-stage": (False, True), "no noisy prompt": (True, False)}
TEST_FIRST = HELD_OUT + 10_000


@dataclass(frozen=True)
class Mixtures:
    """Clips with one noise each, at one ratio. kinds: the noise of every clip."""
    clips: list[Clip]
    noisy: Float[Tensor, "b n"]
    clean: Float[Tensor, "b n"]
    kinds: list[str]


def mixtures(count: int, snr_db: int | float, first: int = TEST_FIRST) -> Mixtures:
    """`count` held-out clips; noises take turns. The noise of a clip does not depend on the ratio."""
    clips, kinds = [make_clip(first + i) for i in range(count)], [NOISES[i % len(NOISES)] for i in range(count)]
    noisy = []
    for i, (clip, kind) in enumerate(zip(clips, kinds)):
        noisy.append(mix(clip.audio, make_noise(kind, np.random.default_rng([first, i])), snr_db))
    return Mixtures(clips, torch.from_numpy(np.stack(noisy)), torch.from_numpy(np.stack([clip.audio for clip in clips])), kinds)


def outputs(system: GenSE, regression: Regression, data: Mixtures) -> dict[tuple[str, float], Tensor]:
    """Log-mel frames of every method; of those that draw tokens, at temperature 1 (the paper's) and 0 (the likeliest)."""
    found = {("noisy", 0.0): log_mel(check_audio(data.noisy)), ("spectral subtraction", 0.0): spectral_subtraction(data.noisy),
             ("regression", 0.0): regression.enhance(data.noisy), ("codec of clean speech", 0.0): system.acoustic.decode(system.acoustic.encode(data.clean)),
             ("clean", 0.0): log_mel(check_audio(data.clean))}
    for name, (hierarchy, prompt) in GENERATED_BY.items():
        for temperature in (0.0, 1.0):
            found[name, temperature] = system.enhance(data.noisy, hierarchy, prompt, temperature).mel
    return found


def statistic(score: str) -> tuple[tuple[str, ...], Callable]:
    """(columns, statistic of their sums) of a score; error rates in %."""
    if score.startswith("edits"):
        return (score, "said"), lambda s: 100 * s[score] / s["said"]
    if score == "voice":
        return ("voice_error", "voice_spread"), lambda s: 1 - s["voice_error"] / s["voice_spread"]
    return ("distance_db", "one"), lambda s: s["distance_db"] / s["one"]


def score_rows(per_clip: Mapping[tuple, dict[str, np.ndarray]], kinds: list[str]) -> pd.DataFrame:
    """One row a method, temperature, SNR, noise ("all" too) and score: value with interval. Keys: (snr, method, temperature)."""
    rows = []
    for (snr, method, temperature), columns in per_clip.items():
        columns = {**columns, "one": np.ones(len(kinds))}
        for noise in ("all", *NOISES):
            pick = np.array([noise in ("all", kind) for kind in kinds])
            for score in SCORES:
                names, value = statistic(score)
                found = interval({name: columns[name][pick] for name in names}, value, draws=1000)
                rows.append((snr, method, temperature, noise, score, found.value, found.low, found.high, int(pick.sum())))
    return pd.DataFrame(rows, columns=["snr_db", "method", "temperature", "noise", "score", "value", "low", "high", "clips"])


PAIRS = (("two-stage", "noisy"), ("two-stage", "spectral subtraction"), ("two-stage", "regression"), ("two-stage", "one-stage"),
         ("two-stage", "no noisy prompt"))


def pair_rows(per_clip: Mapping[tuple, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Paired differences of the two-stage system and each other one, by SNR and over all SNRs ("all": a clip is one unit)."""
    rows = []
    for ours, other in PAIRS:
        for temperature in (0.0, 1.0):
            theirs = temperature if other in GENERATED_BY else 0.0
            for snr in ("all", *SNRS):
                at = SNRS if snr == "all" else (snr,)
                a, b = (_summed([per_clip[s, name, t] for s in at]) for name, t in ((ours, temperature), (other, theirs)))
                both = {f"a_{k}": v for k, v in a.items()} | {f"b_{k}": v for k, v in b.items()}
                for score in SCORES:
                    _, value = statistic(score)
                    def gap(s, value=value):
                        return value({k[2:]: v for k, v in s.items() if k[0] == "a"}) - value({k[2:]: v for k, v in s.items() if k[0] == "b"})
                    found = interval(both, gap, draws=1000)
                    rows.append((ours, other, temperature, str(snr), score, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["ours", "other", "temperature", "snr_db", "score", "value", "low", "high"])


def _summed(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: sum(part[name].astype(float) for part in parts) for name in parts[0]} | {"one": np.full(len(parts[0]["said"]), float(len(parts)))}


def judged_all(system: GenSE, regression: Regression, judge: Judge, count: int) -> tuple[dict[tuple, dict[str, np.ndarray]], list[str]]:
    """Per-clip sums of every method at every SNR, and the noises of the clips."""
    found = {}
    for snr in SNRS:
        data = mixtures(count, snr)
        clean = log_mel(check_audio(data.clean))
        for (method, temperature), mel in outputs(system, regression, data).items():
            found[snr, method, temperature] = judged(mel, data.clips, clean, judge)
    return found, data.kinds


def semantic_rows(system: GenSE, count: int) -> pd.DataFrame:
    """How many semantic tokens equal those of the clean clip: before N2S and behind it, by SNR; "clean" is clean input."""
    rows = []
    for snr in (*SNRS, "clean"):
        data = mixtures(count, 60.0 if snr == "clean" else snr)
        want = system.semantic.encode(data.clean)
        source = want if snr == "clean" else system.semantic.encode(data.noisy)
        for temperature in (0.0, 1.0):
            made = system.decoders["n2s"].generate({"noisy_semantic": source}, temperature, torch.Generator().manual_seed(0))
            for name, codes in (("noisy", source), ("N2S", made)):
                same = (codes == want).float().mean(1).numpy()
                share = interval({"same": same, "one": np.ones(count)}, lambda s: s["same"] / s["one"], draws=1000)
                rows.append((str(snr), name, temperature, share.value, share.low, share.high))
    return pd.DataFrame(rows, columns=["snr_db", "tokens", "temperature", "same", "low", "high"])


def voice_probe(system: GenSE, count: int = 1500, first: int = TEST_FIRST + 50_000) -> pd.DataFrame:
    """What a linear probe reads of the voice from counts of a clip's tokens: R2 on a third of the clips that it was not fitted to."""
    clips = [make_clip(first + i) for i in range(count)]
    audio, truth = torch.from_numpy(np.stack([c.audio for c in clips])), np.stack([c.speaker.standard() for c in clips])
    rows, cut = [], 2 * count // 3
    for name, net, size in (("semantic", system.semantic, len(system.semantic.codebook)), ("acoustic", system.acoustic, system.acoustic.quantizer.codebook_size)):
        codes = net.encode(audio).numpy()
        counts = np.stack([np.bincount(row, minlength=size) for row in codes]).astype(float)
        counts = np.c_[counts, np.ones(count)]
        solved = np.linalg.solve(counts[:cut].T @ counts[:cut] + 10 * np.eye(size + 1), counts[:cut].T @ truth[:cut])
        error = ((truth[cut:] - counts[cut:] @ solved) ** 2).mean(0)
        rows += [(name, what, 1 - e / v) for what, e, v in zip(("pitch", "formants", "tilt"), error, truth[cut:].var(0))]
    return pd.DataFrame(rows, columns=["tokens", "voice", "r2"])


def decode_flops(prompt: int, count: int, num_blocks: int, width: int, mlp: int, vocab: int, cached: bool) -> int:
    """FLOPs of the matrix products that generate `count` tokens behind a prompt; all pairs of attention are computed."""
    def forward(new: int, seen: int, heads: int) -> int:
        per_token = 2 * (4 * width**2 + 2 * width * mlp) * num_blocks
        return new * per_token + 4 * new * seen * width * num_blocks + 2 * heads * width * vocab
    if not cached:
        return sum(forward(prompt + i, prompt + i, prompt + i) for i in range(count))
    return forward(prompt, prompt, 1) + sum(forward(1, prompt + i, 1) for i in range(1, count))


def cost_rows(system: GenSE, repeats: int = 9, batches: tuple[int, ...] = (1, 16)) -> pd.DataFrame:
    """Tokens, counted FLOPs and CPU milliseconds for a second of audio, by stage and clips at once, with and without the cache.
    times_faster: CPU time of recomputing over that with a cache, in turn in one process."""
    rows = []
    for clips in batches:
        audio = mixtures(clips, 5).noisy
        seconds, count = clips * audio.shape[1] / SAMPLE_RATE, audio.shape[1] // 320 * clips
        for stage, run in _stages(system, audio).items():
            once = compare({"recompute": lambda run=run: run(False), "cache": lambda run=run: run(True)}, repeats)
            for row, cached in zip(once.itertuples(), (False, True)):
                counted = counted_flops(lambda run=run, cached=cached: run(cached))
                rows.append((clips, stage, cached, (2 if stage == "tokenize" else 1) * count / seconds, counted / seconds,
                             1e3 * row.cpu_s / seconds, row.cpu_ratio if cached else 1.0))
    return pd.DataFrame(rows, columns=["clips", "stage", "cached", "tokens_per_s", "flops_per_s", "cpu_ms_per_s", "times_faster"])


def _stages(system: GenSE, audio: Tensor) -> dict[str, Callable]:
    """What runs in each stage, as functions of `cached`; on the clip's noisy tokens, which costs the same as on others."""
    mel = log_mel(check_audio(audio))
    parts = {"noisy_semantic": system.semantic.encode(audio), "noisy_acoustic": system.acoustic.encode(audio)}
    parts["clean_semantic"] = parts["noisy_semantic"]

    def generate(variant: str) -> Callable:
        return lambda cached: system.decoders[variant].generate(parts, 0.0, cached=cached)
    return {"tokenize": lambda cached: (system.semantic.encode(audio), system.acoustic.tokens(mel)), "N2S": generate("n2s"),
            "S2S": generate("s2s"), "one-stage": generate("one_stage"), "decode": lambda cached: system.acoustic.decode(parts["noisy_acoustic"])}


def paper_scale(seconds: tuple[float, ...] = (1.28, 2.0, 4.0, 8.0), rate: int = 50, num_blocks: int = 12, width: int = 1024) -> pd.DataFrame:
    """FLOPs of recomputing over FLOPs with a cache, N2S and S2S together, at the release's size (both kinds at `rate` tokens/s)."""
    rows = []
    for length in seconds:
        count = round(length * rate)
        total = {cached: sum(decode_flops(sum(1 if kind == "bos" else count for kind in PARTS[v]), count, num_blocks, width, 4 * width,
                                          3 + 1024 + 8192 * (v == "s2s"), cached) for v in ("n2s", "s2s")) for cached in (False, True)}
        rows.append((length, 4 * count + 1, total[False], total[True], total[False] / total[True]))
    return pd.DataFrame(rows, columns=["seconds", "chain_tok", "flops_recompute", "flops_cached", "ratio"])


