"""Record what notebook 04 shows of RobusTok and of post-training, beside the sweeps of their training recipes.

    python recipes/record_robustok.py [--only scores|psnr|strip|sigma]

One thread, about five minutes. Needs the weights vq_grid_64, robustok_64, their generators and post_trained_64.
"""
import argparse
from pathlib import Path

import pandas as pd
import torch

from frugal.core.recording import record
from frugal.models import load_card
from frugal.visual_tokenizers import post_training_measure, robustok_measure

OUT = Path(robustok_measure.__file__).parent / "recorded"


def write(rows, name: str, *models: str) -> None:
    """Record rows with the hashes of the weights they depend on."""
    table = pd.DataFrame(rows).assign(**{f"{model}_hash": load_card(model)["sha256"][:16] for model in models})
    record(table, OUT / f"{name}.json")
    print(name, len(table), "rows,", (OUT / f"{name}.json").stat().st_size // 1000, "kB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("scores", "psnr", "strip", "sigma"))
    only = parser.parse_args().only
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    OUT.mkdir(exist_ok=True)
    grids = ("vq_grid_64", "robustok_64")
    if only in (None, "psnr"):
        write(robustok_measure.psnr_rows(), "robustok_psnr", *grids)
    if only in (None, "strip"):
        write(robustok_measure.strip_rows(), "robustok_strip", *grids)
    if only in (None, "scores"):
        rows, cells = robustok_measure.score_rows()
        print(pd.DataFrame(rows).round(3).T.to_string())
        write(rows, "robustok_scores", *grids, "vq_grid_64_ar", "robustok_64_ar")
        write(cells, "robustok_cells", *grids)
    if only in (None, "sigma"):
        write(post_training_measure.strip_rows(), "post_training_strip", "robustok_64", "robustok_64_ar", "post_trained_64")


if __name__ == "__main__":
    main()
