"""Record what notebook 03 shows of Duo-LLM: losses by budget, the oracle's layers, difficult tokens, milliseconds.

    python recipes/record_duo.py [--only curve|skip|strip|speed] [--windows 16]

One thread, about ten minutes. Needs the committed weights only (recipes/train_duo_lm.py, recipes/train_duo_routers.py).
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from frugal.core.measure import hardware
from frugal.core.recording import record
from frugal.early_exit import duo_measure as duo_m
from frugal.early_exit.duo_oracle import sequential_oracle, uniform_losses
from frugal.early_exit.duo_routers import load_routers
from frugal.models import load_card
from frugal.models.duo_lm import DuoLM, load_duo_lm

OUT = Path(duo_m.__file__).parent / "recorded"
TEXTS = {"fnmatch.py": 5, "queue.py": 40, "textwrap.py": 80}  # name -> held-out window


def write(rows, name: str, **constant) -> pd.DataFrame:
    """Record rows with what they depend on, and return them."""
    table = pd.DataFrame(rows).assign(model_hash=load_card("duo_lm")["sha256"][:16], **constant)
    record(table, OUT / f"{name}.json")
    return table


def record_curve(duo: DuoLM, windows: int) -> None:
    tokens, routers = duo_m.held_out(windows), load_routers()
    exact, control, table, masks, rate = duo_m.oracles(duo, tokens)
    rows = write(
        duo_m.curve_rows(duo, tokens, routers, exact, control, table, masks), "duo_curve", windows=windows, dropout=rate
    )
    write(duo_m.picks_rows(duo, exact, routers, tokens), "duo_picks", windows=windows)
    write(duo_m.position_rows(duo, exact), "duo_positions", windows=windows)
    print(rows.pivot_table(index="method", columns="budget_layers", values="loss").round(3).to_string(), rate)


def record_strips(duo: DuoLM) -> None:
    rows = []
    for name, window in TEXTS.items():
        tokens = duo_m.held_out(None)[window : window + 1]
        exact = sequential_oracle(duo, tokens, [*range(duo.config.num_layers + 1), None])
        rows += [{"text": name, **row} for row in duo_m.strip_rows(duo, tokens, exact, uniform_losses(duo, tokens))]
    write(rows, "duo_strip")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("curve", "skip", "strip", "speed"))
    parser.add_argument("--windows", type=int, default=8, help="held-out windows of 257 tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    duo = load_duo_lm()
    if options.only in (None, "speed"):
        print(write(duo_m.speed_rows(duo), "duo_speed", threads=1, hardware=hardware()).round(3).to_string())
    if options.only in (None, "strip"):
        record_strips(duo)
    if options.only in (None, "skip"):
        write(duo_m.skip_rows(duo, duo_m.held_out(4)), "duo_skip", windows=4)
    if options.only in (None, "curve"):
        record_curve(duo, options.windows)


if __name__ == "__main__":
    main()
