"""Record what SkipDecode gives and costs: python recipes/record_skipdecode.py [quality speed]

quality: loss and agreement at each target speed-up, mini-LM and SmolLM2, beside the baselines at the same mean depth.
speed: tokens/s at batch 1, 4 and 8, interleaved with the whole model and confident exit, and the time of each step.
One thread; about ten minutes on a quiet core, most of it SmolLM2. --model records one model and keeps the other's rows.
"""
import argparse
from pathlib import Path

import pandas as pd
import torch

from frugal.core.recording import read_recorded, record
from frugal.early_exit import skip_measure
from frugal.early_exit.lenses import load_ridge_lens
from frugal.early_exit.workloads import MINI_LM, SMOLLM2, model

OUT = Path(__file__).parents[1] / "lib/frugal/early_exit/recorded"
BATCHES = {MINI_LM: (1, 4, 8), SMOLLM2: (1, 8)}
SHOWN = (("full", 1.0), ("skipdecode", 2.0), ("skipdecode", 4.0))     # whose steps are kept one by one


def say(row: dict) -> None:
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)


def quality(name: str) -> dict[str, pd.DataFrame]:
    groups, batch, speedups = (2, 16, skip_measure.SPEEDUPS) if name == MINI_LM else (2, 4, (1.0, 1.5, 2.0, 3.0, 4.0))
    lens = load_ridge_lens() if name == SMOLLM2 else None
    return {"skip_quality": skip_measure.quality_rows(model(name), name, groups, batch, lens, speedups, say)}


def speed(name: str) -> dict[str, pd.DataFrame]:
    rounds, tokens = (7, 65) if name == MINI_LM else (3, 33)
    found = [skip_measure.speed_rows(model(name), name, batch, rounds, tokens, say) for batch in BATCHES[name]]
    steps = pd.concat([places for _, places in found], ignore_index=True)
    keep = pd.Series([key in SHOWN for key in zip(steps.method, steps.setting)])
    return {"skip_speed": pd.concat([rows for rows, _ in found], ignore_index=True),
            "skip_steps": steps[keep & steps.batch.isin((1, 8))].reset_index(drop=True)}


def merged(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The new rows, and those of models that were not run this time."""
    path = OUT / f"{name}.json"
    if not path.is_file():
        return rows
    old = read_recorded(path)
    return pd.concat([old[~old.model.isin(set(rows.model))], rows], ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=["quality", "speed"], choices=["quality", "speed"])
    parser.add_argument("--model", choices=[MINI_LM, SMOLLM2], action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.model or [MINI_LM, SMOLLM2]:
        for what in options.what:
            for table, rows in {"quality": quality, "speed": speed}[what](name).items():
                record(merged(table, rows), OUT / f"{table}.json")


if __name__ == "__main__":
    main()
