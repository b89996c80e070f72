"""Fits SmolLM2's ridge lenses and entry bridges and measures every layer: python recipes/fit_lenses.py

One forward pass over 40,000 tokens of documentation and 10,000 of the model's own answers, then one solve a layer: about
ten minutes on one core. Writes the maps (8-bit rows, 0.34 MB each) with their cards, and recorded/lens_layers.json: what
both lenses say at every layer on pages that were left out of the fit.
"""
import hashlib
import json
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from frugal import load_lm
from frugal.core.generation import generate
from frugal.core.recording import record
from frugal.early_exit.bridges import ENTRIES, WARM_UP, add_bridge_rows
from frugal.early_exit.held_out import fitting_pages, held_out_windows
from frugal.early_exit.lenses import EXITS, RidgeLens, add_lens_rows, save_maps, unpacked_maps, packed_maps
from frugal.early_exit.lens_measure import bridge_rows, layer_rows
from frugal.early_exit.ridge import RidgeSums

OUT = Path(__file__).parents[1] / "lib/frugal/early_exit/recorded"
DOC_TOKENS, WINDOW, SEED, PENALTY = 40_000, 512, 0, 1e-3
TOPICS = ("tides", "bread", "chess", "volcanoes", "a lost dog", "the metric system", "how bicycles work", "a rainy city",
          "prime numbers", "jazz", "bees", "winter sports", "old maps", "the heart", "trains", "paper", "coral reefs",
          "a library at night", "sorting a list in Python", "glass")
ASKS = ("Explain {} to a ten-year-old.", "Write a short story about {}.")


def chat_windows(lm) -> list[list[int]]:
    """The model's own answers, with their questions, as token windows: 40 answers of up to 256 tokens."""
    asked = [lm.tokenizer.chat([{"role": "user", "content": ask.format(topic)}]) for topic in TOPICS for ask in ASKS]
    windows = []
    for first in range(0, len(asked), 20):
        part = asked[first:first + 20]
        answers = generate(lm, part, max_new_tokens=256, temperature=0.8, seed=SEED + first)
        windows += [lm.tokenizer.encode(q) + a.tokens for q, a in zip(part, answers)]
    return windows


def doc_windows(lm) -> list[list[int]]:
    tokens = lm.tokenizer.encode("\n".join(page.text for page in fitting_pages()))[:DOC_TOKENS]
    return [tokens[i:i + WINDOW] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]


def fit(lm, windows: list[list[int]]) -> tuple[RidgeLens, dict]:
    """Lenses of every layer and the bridges, in one pass."""
    width, layers = lm.config.hidden_size, range(1, lm.config.num_layers)
    lens, bridge = {e: RidgeSums(width, width) for e in layers}, {e: RidgeSums(width, width) for e in ENTRIES}
    start = time.perf_counter()
    for number, window in enumerate(windows):
        hidden = lm.run(torch.tensor([window]), hidden=True, logits=False).hidden
        for e, sums in lens.items():
            add_lens_rows(sums, hidden[e][0], hidden[-1][0])
        for e, sums in bridge.items():
            add_bridge_rows(sums, hidden[WARM_UP][0], hidden[e][0])
        if number % 10 == 0:
            print(f"window {number} of {len(windows)}, {time.perf_counter() - start:.0f} s", flush=True)
    return RidgeLens({e: s.solve(PENALTY) for e, s in lens.items()}), {e: s.solve(PENALTY) for e, s in bridge.items()}


def main() -> None:
    torch.set_num_threads(1)
    lm = load_lm("smollm2-135m", progress=False)
    windows = doc_windows(lm) + chat_windows(lm)
    data = hashlib.sha256(json.dumps(windows).encode()).hexdigest()
    lens, bridges = fit(lm, windows)
    stored = RidgeLens(unpacked_maps(packed_maps({e: lens.maps[e] for e in EXITS})))
    stored_bridges = unpacked_maps(packed_maps(bridges))
    test = held_out_windows(lm.tokenizer)
    rows = pd.DataFrame(layer_rows(lm, lens, test))
    kept = pd.DataFrame(layer_rows(lm, stored, test, exits=EXITS)).query("lens == 'ridge_lens'")
    jumps = pd.DataFrame(bridge_rows(lm, stored_bridges, test))
    print(rows.to_string(), kept.to_string(), jumps.to_string(), sep="\n")
    OUT.mkdir(parents=True, exist_ok=True)
    record(rows, OUT / "lens_layers.json")
    record(jumps, OUT / "bridge_jumps.json")
    card = {"recipe": "recipes/fit_lenses.py", "seed": SEED, "data_hash": data, "penalty": PENALTY, "model": lm.name,
            "data": f"{sum(map(len, windows))} tokens: CPython documentation pages and the model's own chat answers"}
    save_maps("smollm2_lenses", {e: lens.maps[e] for e in EXITS}, card | {"metrics": {
        "agreement": {str(r.exit): round(r.agreement, 4) for r in kept.itertuples()}}})
    save_maps("smollm2_bridges", bridges, card | {"warm_up": WARM_UP, "metrics": {
        "agreement": {str(r.entry): round(r.agreement, 4) for r in jumps.itertuples() if r.bridged}}})


if __name__ == "__main__":
    sys.exit(main())
