"""Record what notebook 04 shows of GenSE (arXiv 2502.02942): scores by SNR, token figures, costs, and a few clips with sound.

    python recipes/record_gense.py [TABLE ...]

About two CPU minutes, one thread. Tables: gense_scores, gense_pairs, gense_semantic, gense_voice, gense_cost, gense_scale, gense_clips, gense_live.
"""
import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

import frugal.visual_tokenizers as family
from frugal.core.files import write_atomically
from frugal.core.recording import record
from frugal.visual_tokenizers import gense_measure as measure
from frugal.visual_tokenizers.gense import load_gense
from frugal.visual_tokenizers.gense_baselines import load_regression
from frugal.visual_tokenizers.gense_judge import load_judge
from frugal.visual_tokenizers.gense_shown import shown_clips
from frugal.visual_tokenizers.live_gense import first_result, stored

HOME, CLIPS = Path(family.__file__).parent, 200
ASSETS: dict[str, Callable] = {"gense_clips": lambda: shown_clips(load_gense()), "gense_live": lambda: stored(first_result())}


@lru_cache(maxsize=1)
def judged():
    return measure.judged_all(load_gense(), load_regression(), load_judge(), CLIPS)


TABLES: dict[str, Callable] = {
    "gense_scores": lambda: measure.score_rows(*judged()),
    "gense_pairs": lambda: measure.pair_rows(judged()[0]),
    "gense_semantic": lambda: measure.semantic_rows(load_gense(), CLIPS),
    "gense_voice": lambda: measure.voice_probe(load_gense()),
    "gense_cost": lambda: measure.cost_rows(load_gense()),
    "gense_scale": measure.paper_scale,
}


def main(names: list[str]) -> None:
    unknown = set(names) - {*TABLES, *ASSETS}
    if unknown:
        raise SystemExit(f"no table {sorted(unknown)}; there are: {', '.join([*TABLES, *ASSETS])}")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in names or [*TABLES, *ASSETS]:
        if name in ASSETS:
            (HOME / "assets").mkdir(exist_ok=True)
            path = HOME / "assets" / f"{name}.json"
            write_atomically(path, json.dumps(ASSETS[name](), indent=0) + "\n")
        else:
            path = record(TABLES[name](), HOME / "recorded" / f"{name}.json")
        print("wrote", path.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
