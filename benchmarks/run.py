"""All speed measurements: one JSON file, one markdown table. `make bench`, or

    OMP_NUM_THREADS=2 python benchmarks/run.py [decode linear eviction peer] [--quick] [--out FOLDER]

Ratios are taken within one process, baseline and ours in turn, medians of the rounds, two threads. --quick is a
trial with few rounds that records nothing. Close other programs first: the wall clock of a busy machine is noise.
"""
import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import torch

from frugal.core import measure

PARTS = {"decode": "Decoding and prefill", "linear": "Products by number of rows", "eviction": "Eviction in a batch",
         "peer": "Beside kvpress"}
THREADS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; default all")
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing recorded for the notebooks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(THREADS)
    results = {"hardware": measure.hardware(), "threads": THREADS, "torch": torch.__version__, "quick": options.quick}
    text = [f"Measured on {measure.hardware()}; {THREADS} threads, fp32, SmolLM2-135M, medians, ratios within one process."]
    for name in options.parts or PARTS:
        start = time.perf_counter()
        part = importlib.import_module(name)
        results[name] = part.run(options.quick)
        text.append(f"### {PARTS[name]}\n\n{part.markdown(results[name])}")
        print(f"{text[-1]}\n\n({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (options.out / "results.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
