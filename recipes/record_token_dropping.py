"""Records the sweeps and pictures that notebook 02 draws: python recipes/record_token_dropping.py [--only TABLE ...]

Tables: scenes (about four minutes on one core), variants, pictures, buys (needs SmolLM2). Rows of the sweep that are
in the user cache are not run again.
"""
import argparse
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from frugal import load_lm
from frugal.core.recording import record
from frugal.core.sweep import Sweep
from frugal.data.scenes import HELD_OUT, images_of, make_scene
from frugal.explore import live
from frugal.token_dropping import ALL, FastV, Full, HiRED, drop_buys, figures_keep, live_scene, results
from frugal.token_dropping.answering import captions
from frugal.token_dropping.hired import cls_attention
from frugal.token_dropping.workloads import BUDGETS, WORKLOADS, encoder_flops, model

OUT = Path(__file__).parents[1] / "lib/frugal/token_dropping/recorded"
ASSETS = OUT.parent / "assets"
SEEDS = 3                                                       # blocks of 50 scenes
PICTURED, ALPHAS = (3, 11, 17), (0.0, 0.5, 1.0)     # numbers of held-out scenes in the keep picture
BASE, RENUMBERED = HiRED(), "decoder positions renumbered"
VARIANTS = {
    "as it stands": BASE, "alpha 0 (tiles alone)": replace(BASE, alpha=0.0), "alpha 0.25": replace(BASE, alpha=0.25),
    "alpha 0.75": replace(BASE, alpha=0.75), "alpha 1 (overview first)": replace(BASE, alpha=1.0),
    "regions scored by mass": replace(BASE, score="mass"),
    "strips and floors (release)": replace(BASE, as_released=True),
    "last layer allocates": replace(BASE, allocation_layer=-1), "first layer selects": replace(BASE, selection_layer=0),
    RENUMBERED: BASE,
    "FastV, 20 % kept after block 2": FastV(equal="tokens")
}


def scenes(jobs: int) -> None:
    """Every method at every budget on the same scenes."""
    methods = [cls for cls in ALL if cls.kind != "steering" and cls is not Full]
    tables = [Sweep("token_dropping", [Full], [1.0], "scenes", SEEDS).run(jobs=jobs),
              Sweep("token_dropping", methods, list(BUDGETS), "scenes", SEEDS).run(jobs=jobs)]
    record(pd.concat(tables, ignore_index=True), OUT / "scenes.json")
    record(pd.DataFrame({"flops": [float(encoder_flops())]}), OUT / "encoder.json")


def variants(jobs: int) -> None:
    """HiRED at 20 % with one thing changed at a time."""
    rows = []
    for name, method in tqdm(VARIANTS.items(), desc="variants", disable=None):
        work = WORKLOADS["contiguous" if name == RENUMBERED else "scenes"]
        measured = pd.DataFrame([{**work.measure(method, 0.2, seed), "seed": seed} for seed in range(SEEDS)])
        for score in results.SCORES:
            found = results.share(measured, score)
            rows.append((name, score, found.value, found.low, found.high, float(measured.held_tok.mean())))
    record(pd.DataFrame(rows, columns=["variant", "score", "value", "low", "high", "held_tok"]), OUT / "variants.json")


def pictures(jobs: int) -> None:
    """CLS maps and captions of the pictured scenes at every budget and alpha; the live form's first answer."""
    vlm, drawn = model(), []
    for number in PICTURED:
        scene = make_scene(HELD_OUT + number)
        tokens = vlm.see(images_of([scene]))
        said = {
            f"{budget:g} {alpha:g}": captions(vlm, tokens, HiRED(alpha=alpha), budget)[0] for budget in BUDGETS
            for alpha in ALPHAS
        }
        maps = {name: [[round(float(v), 5) for v in view] for view in cls_attention(tokens.features, layer)[0]]
                for name, layer in (("first", 0), ("last", -1))}
        drawn.append({
            "image": figures_keep.png(scene.image), "overview": figures_keep.png(figures_keep.overview_of(scene.image)),
            "names": scene.names, **maps, "captions": said, "full": captions(vlm, tokens)[0]
        })
    grid = vlm.grid
    data = {"scenes": drawn, "grid": [grid.tile_rows, grid.tile_cols, grid.patch_rows, grid.patch_cols],
            "budgets": [*sorted(BUDGETS)[:-1], 1.0], "alphas": list(ALPHAS)}
    write(ASSETS / "keep_scenes.json", data)
    first = live(live_scene.ask_twice, live_scene.two_answers, **live_scene.inputs()).defaults()
    write(ASSETS / "live_scene.json", live_scene.ask_twice(first, lambda fraction, partial=None: None))


def buys(jobs: int) -> None:
    """The paper's token counts through SmolLM2."""
    record(drop_buys.measure(load_lm()), OUT / "drop_buys.json")


def write(path: Path, data) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, separators=(",", ":"), ensure_ascii=False))


TABLES = [scenes, variants, pictures, buys]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=[table.__name__ for table in TABLES])
    options = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for table in TABLES:
        if not options.only or table.__name__ in options.only:
            table(options.jobs)
            print("recorded", table.__name__, flush=True)
