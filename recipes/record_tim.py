"""Record the runs behind the TIMRUN figures: accuracy against size, one run step by step, its tree.

    python recipes/record_tim.py --seeds 12

One thread, about 15 CPU minutes. Writes tim_accuracy.json, tim_steps.json and tim_tree.json into the package.
"""
import argparse
from pathlib import Path

import torch
from tqdm.auto import tqdm

import frugal.kv_eviction as family
from frugal.core.recording import record
from frugal.kv_eviction import tim_measure
from frugal.kv_eviction.timrun import Timrun
from frugal.models.mini_tim import load_mini_tim

EXAMPLE = (25, 0)                                  # records, seed of the run that is shown step by step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=12, help="problems of each size")
    parser.add_argument("--out", type=Path, default=Path(family.__file__).parent / "recorded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_mini_tim()
    document = tim_measure.problem(*EXAMPLE)
    record(tim_measure.steps_table(lm, document), options.out / "tim_steps.json")
    record(tim_measure.tree_table(Timrun(0).solve(lm, document)), options.out / "tim_tree.json")
    rows = tim_measure.measure(lm, tim_measure.METHODS, tim_measure.SIZES, range(options.seeds), progress=tqdm)
    record(rows, options.out / "tim_accuracy.json")
    print(tim_measure.summary(rows).to_string())


if __name__ == "__main__":
    main()
