"""Record what the R2R figures and claims draw from: the comparison of methods, label shares, worked chains, speed, and the pair on prose.

    python recipes/record_r2r.py --part all

One thread, some 15 CPU minutes. Writes r2r_methods.json, r2r_labels.json, r2r_chains.json, r2r_speed.json and, with SmolLM2,
r2r_prose.json into the package.
"""
import argparse
from pathlib import Path

import torch

import frugal.early_exit as family
from frugal.core.recording import record
from frugal.data import arithmetic_chains as chains
from frugal.early_exit import r2r_measure, r2r_paths
from frugal.early_exit.r2r_labels import label_answers
from frugal.early_exit.r2r_router import load_router
from frugal.models.r2r_pair import load_pair, right_share, write_answers

TEST_SEED, FIT_SEED = 30_001, 30_002               # problems of the comparison; problems on which query-level routing is fitted
EXAMPLES = 6


def methods(out: Path, count: int, oracle_count: int) -> None:
    large, small = load_pair()
    router, threshold = load_router(small)
    problems = chains.chains(TEST_SEED, count)
    labelled = label_answers(large, small, problems)
    hardness = r2r_measure.question_hardness(small, chains.chains(FIT_SEED, 2000), problems)
    rows = r2r_measure.measure(small, large, router, threshold, problems, labelled, hardness, oracle_count)
    record(rows, out / "r2r_methods.json")
    print(rows[["method", "knob", "right", "activated", "calls", "read"]].to_string())
    record(r2r_measure.label_shares(labelled), out / "r2r_labels.json")


def paths(out: Path) -> None:
    large, small = load_pair()
    router, threshold = load_router(small)
    candidates = chains.chains(TEST_SEED + 5, 60)
    answers = write_answers(small, candidates)
    wrong = [chain for chain, text in zip(candidates, answers) if right_share([text], [chain]) == 0][:EXAMPLES]
    record(r2r_paths.chain_rows(small, large, router, wrong, sorted({0.1, threshold, 0.9, 2.0})), out / "r2r_chains.json")


def speed(out: Path) -> None:
    large, small = load_pair()
    router, threshold = load_router(small)
    record(r2r_paths.speed_rows(small, large, router, threshold, chains.chains(TEST_SEED, 30)), out / "r2r_speed.json")


def prose(out: Path) -> None:
    from frugal.core.checkpoints import load_lm
    record(r2r_paths.prose_rows(load_lm("smollm2-135m")), out / "r2r_prose.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=("all", "methods", "chains", "speed", "prose"), default="all")
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--oracle-problems", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(family.__file__).parent / "recorded"
    if options.part in ("all", "methods"):
        methods(out, options.problems, options.oracle_problems)
    if options.part in ("all", "chains"):
        paths(out)
    if options.part in ("all", "speed"):
        speed(out)
    if options.part in ("all", "prose"):
        prose(out)


if __name__ == "__main__":
    main()
