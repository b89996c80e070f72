"""Record what the MiKV and ShadowKV pictures show, on SmolLM2: `python recipes/record_kv_pictures.py [table ...]`.

Writes lib/frugal/kv_eviction/recorded/<table>.json. About twenty minutes on one core, most of it the two quality
tables. Tables: mikv_keys, mikv_errors, mikv_strip, mikv_quality, shadow_spectrum, shadow_mass, shadow_timeline,
shadow_quality.
"""
import sys
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from frugal import load_lm
from frugal.core.quantize import effective_bits
from frugal.core.recording import record
from frugal.kv_eviction import cache_measurements as measure
from frugal.kv_eviction.mikv import Mikv, channel_balancer
from frugal.kv_eviction.shadowkv import Shadowkv

FOLDER = Path(__file__).parents[1] / "lib/frugal/kv_eviction/recorded"
LAYERS = (0, 5, 15, 29)
SEEDS = (0, 1)
MIKV = [("RTN", Mikv.uniform(bits), bits) for bits in (2, 3, 4, 8)]
MIKV += [("RTN + balancer", Mikv.uniform(bits, balanced=True), bits) for bits in (2, 3, 4)]
MIKV += [("RTN, groups of 32", Mikv.uniform(bits, group=32), bits) for bits in (2, 3, 4)]
MIKV += [("keys per channel", Mikv.uniform(bits, key_axis="channel"), bits) for bits in (2, 3)]
MIKV += [("MiKV 20 %", Mikv(low_bits=bits), bits) for bits in (2, 3, 4)]
MIKV += [("MiKV 50 %", Mikv(important=0.5, low_bits=bits), bits) for bits in (2, 3)]
MIKV += [("MiKV 20 %, no balancer", Mikv(low_bits=3, balanced=False), 3)]
EVICT = [("evicted instead", Mikv(important=share), 16) for share in (0.2, 0.5, 0.75)]


def mikv_keys(lm, layers) -> pd.DataFrame:
    """One KV head's keys of the layer whose loudest channel stands out most; 40 tokens."""
    loud = [layer["keys"].abs().amax(1) for layer in layers]
    number = max(range(len(layers)), key=lambda i: float((loud[i].amax(1) / loud[i].median(1).values).amax()))
    head = int((loud[number].amax(1) / loud[number].median(1).values).argmax())
    queries = layers[number]["queries"].unflatten(1, (loud[0].shape[0], -1))[:, head].abs().amax((0, 1))
    factor = channel_balancer(queries, loud[number][head])
    keys = layers[number]["keys"][head, 64:104]
    rows = [(number, head, 64 + t, c, round(float(keys[t, c]), 3), round(float(keys[t, c] * factor[c]), 3))
            for t in range(keys.shape[0]) for c in range(keys.shape[1])]
    return pd.DataFrame(rows, columns=["layer", "head", "token", "channel", "key", "balanced"])


def mikv_errors(lm, layers) -> pd.DataFrame:
    """Relative error of attention outputs with quantised keys, mean of all layers."""
    rows = [(bits, balanced, measure.mean(measure.output_error(layer, bits, balanced) for layer in layers))
            for bits in (2, 3, 4, 8) for balanced in (False, True)]
    return pd.DataFrame(rows, columns=["bits", "balancer", "error"])


def mikv_strip(lm, layers) -> pd.DataFrame:
    """Stored bits of every token while 24 tokens are decoded after a prompt of 72."""
    tokens, cache = measure.docs_tokens(lm, 96), Mikv(low_bits=3).make_cache(lm.config, lm.rope)
    lm.run(torch.tensor([tokens[:72]]), cache, logits=False)
    cache.finish_prompt()
    rows = []
    for step in range(25):
        if step:
            lm.run(torch.tensor([tokens[71 + step:72 + step]]), cache, logits=False)
        if step % 8 == 0:
            rows += [(step, layer, head, position, lm.tokenizer.decode([tokens[position]]), bits)
                     for layer in (0, 15, 29) for head in range(3) for position, bits in enumerate(cache.bits_per_token(layer, head))]
    return pd.DataFrame(rows, columns=["step", "layer", "head", "position", "text", "bits"])


def mikv_quality(lm, layers) -> pd.DataFrame:
    """Copy accuracy and continuation loss against bytes, for MiKV, uniform rounding and eviction of the same tokens."""
    rows = []
    for name, method, bits in tqdm([("full", None, 16), *MIKV, *EVICT], desc="mikv_quality", disable=None):
        for seed in SEEDS:
            caches = [measure.new_cache(lm, method, evict=name.startswith("evicted")) for _ in range(2)]
            copy, nll = measure.copy_accuracy(lm, caches[0], seed), measure.continuation_nll(lm, caches[1], seed)
            important = 1.0 if method is None else float(method.important)
            low = 0 if name.startswith("evicted") else effective_bits(64, bits, method.group if method else None)
            rows.append((name, bits, important, important * 16 + (1 - important) * low, seed, copy, nll))
    return pd.DataFrame(rows, columns=["method", "low_bits", "important", "bits_per_element", "seed", "copy", "nll"])


def shadow_spectrum(lm, layers) -> pd.DataFrame:
    """Share of the squared norm lost at each rank, for keys before and after RoPE and values."""
    what = {"keys before RoPE": "plain keys", "keys after RoPE": "keys", "values": "values"}
    rows = [(number, name, rank, float(left)) for number in LAYERS for name, key in what.items()
            for rank, left in enumerate(measure.energy_left(layers[number][key])) if rank % 4 == 0 or rank in (30, 48)]
    return pd.DataFrame(rows, columns=["layer", "matrix", "rank", "lost"])


def shadow_mass(lm, layers) -> pd.DataFrame:
    """Attention mass to older chunks that the chosen chunks catch, mean of all layers."""
    rules = [("landmark", 0), ("landmark", 1), ("landmark", 2), ("quest", 0), ("oracle", 0)]
    rows = [(rule, outliers, budget, measure.mean(measure.landmark_mass(layer, budget, rule, outliers) for layer in layers))
            for rule, outliers in rules for budget in (32, 64, 128, 256, 512)]
    return pd.DataFrame(rows, columns=["rule", "outliers", "budget", "mass"])


def shadow_timeline(lm, layers) -> pd.DataFrame:
    """The events of steps 1 and 8 of decoding after a prompt of 1,024 tokens."""
    tokens, cache = measure.docs_tokens(lm, 1040), Shadowkv(events=True).make_cache(lm.config, lm.rope)
    lm.run(torch.tensor([tokens[:1024]]), cache, logits=False)
    cache.finish_prompt()
    for token in tokens[1024:1034]:
        lm.run(torch.tensor([[token]]), cache, logits=False)
    rows = []
    for step in (0, 1, 8):
        events = [e for e in cache.meter.events if e.step == step]
        start = min(e.start_s for e in events)
        rows += [(e.step, e.layer, e.lane, e.start_s - start, e.end_s - start, e.rows, e.hits) for e in events]
    return pd.DataFrame(rows, columns=["step", "layer", "lane", "start_s", "end_s", "rows", "hits"])


def shadow_quality(lm, layers) -> pd.DataFrame:
    """Copy accuracy, continuation loss, resident bytes and bytes moved against rank and sparse budget."""
    rows = []
    grid = [(None, 0.0)] + [(rank, sparse) for rank in (16, 32, 48, 96, 192) for sparse in (0.05, 0.125, 0.25, 0.5)]
    for rank, sparse in tqdm(grid, desc="shadow_quality", disable=None):
        method = None if rank is None else Shadowkv(rank=rank, sparse=sparse)
        caches = [measure.new_cache(lm, method) for _ in range(2)]
        copy, nll = measure.copy_accuracy(lm, caches[0], 0), measure.continuation_nll(lm, caches[1], 0)
        meter = getattr(caches[1], "meter", None)
        grown = 127 * lm.config.kv_bytes_per_token
        resident = (caches[1].num_bytes - grown) / (512 * lm.config.kv_bytes_per_token) if method else 1.0
        rows.append((rank or 0, sparse, copy, nll, resident, meter.bytes_read if meter else 0, meter.hit_rate if meter else 0.0))
    return pd.DataFrame(rows, columns=["rank", "sparse", "copy", "nll", "resident", "bytes_read", "hit_rate"])


TABLES = [mikv_keys, mikv_errors, mikv_strip, shadow_spectrum, shadow_mass, shadow_timeline, mikv_quality, shadow_quality]


def main(names: list[str]) -> None:
    lm = load_lm("smollm2-135m")
    layers = measure.recorded_layers(lm)
    for table in TABLES:
        if not names or table.__name__ in names:
            print("wrote", record(table(lm, layers), FOLDER / f"{table.__name__}.json").name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
