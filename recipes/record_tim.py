"""Record the runs behind the TIMRUN figures: accuracy against size, one run step by step, its tree.

    python recipes/record_tim.py --seeds 12

One thread, about 6 CPU minutes. Writes tim_accuracy.json, tim_steps.json and tim_tree.json into the package;
with --demo tim_demo.json instead, the forced thread on SmolLM2.
"""
import argparse
from pathlib import Path

import torch
from tqdm.auto import tqdm

import frugal.kv_eviction as family
from frugal.core.checkpoints import load_lm
from frugal.core.recording import record
from frugal.kv_eviction import tim_demo, tim_measure
from frugal.models.mini_tim import load_mini_tim

ORDER = {"apple": 4, "bread": 2, "cheese": 3, "honey": 5}
EXAMPLE = (20, 0)                                  # records, seed of the run that is shown step by step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4, help="problems of each size")
    parser.add_argument("--out", type=Path, default=Path(family.__file__).parent / "recorded")
    parser.add_argument("--demo", action="store_true", help="record the forced thread on SmolLM2 and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.demo:
        record(tim_demo.steps_table(load_lm("smollm2-135m"), ORDER), options.out / "tim_demo.json")
        return
    lm = load_mini_tim()
    document = tim_measure.problem(*EXAMPLE)
    record(tim_measure.steps_table(lm, document), options.out / "tim_steps.json")
    record(tim_measure.tree_table(tim_measure.Replay(lm, document.look, 0).replay(document)), options.out / "tim_tree.json")
    rows = tim_measure.measure(lm, tim_measure.METHODS, tim_measure.SIZES, range(options.seeds), progress=tqdm)
    record(rows, options.out / "tim_accuracy.json")
    print(tim_measure.summary(rows).to_string())


if __name__ == "__main__":
    main()
