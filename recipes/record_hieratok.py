"""Record what notebook 04 shows of HieraTok: the scores of all trained variants, the flow's convergence, pictures, cost.

    python recipes/record_hieratok.py [--work FOLDER]

A minute. --work: the folder of recipes/train_hieratok.py, whose rows.json is stored; without it those rows stay as they are.
"""
import argparse
import json
from pathlib import Path

import pandas as pd
import torch

from frugal.core.measure import hardware
from frugal.core.recording import record
from frugal.models import load_card
from frugal.visual_tokenizers import hieratok_measure as measure
from frugal.visual_tokenizers.hieratok import load_hieratok

OUT = Path(measure.__file__).parent / "recorded"
EMOJI = ["pizza", "lady beetle", "partying face", "flag: Germany"]


def write(rows, name: str, **constant) -> None:
    table = pd.DataFrame(rows).assign(**constant)
    record(table, OUT / f"{name}.json")
    print(table[[c for c in table.columns if c != "png"]].round(4).to_string(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    if given.work:
        rows = pd.DataFrame(json.loads((given.work / "rows.json").read_text()))
        for kind, name in (("tokenizer", "hieratok_scores"), ("flow", "hieratok_flow")):
            own = rows[rows["kind"] == kind].drop(columns=["kind"]).dropna(axis=1, how="all")
            write(own.drop(columns=[c for c in ("cpu_s",) if c in own]), name)
    write(measure.cost_rows(), "hieratok_cost", threads=1, hardware=hardware())
    write(measure.coarse_rows(load_hieratok(), EMOJI), "hieratok_coarse", model_hash=load_card("hieratok")["sha256"][:16])


if __name__ == "__main__":
    main()
