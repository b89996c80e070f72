"""Records what all picture tokenizers of notebook 04 share: python recipes/record_tokenizers.py [--only TABLE ...]

Tables: reconstruct (every tokenizer at every count, r-eFID over all pictures; about ten CPU minutes), codebooks, board, live.
Rows of the sweep that are in the user cache are not run again; a tokenizer without stored weights gets rows with an error.
"""
import argparse
from pathlib import Path

import pandas as pd
import torch

from frugal.core.recording import record
from frugal.core.sweep import Sweep
from frugal.data.emoji_images import load_images
from frugal.models.quantizers import codebook_usage
from frugal.visual_tokenizers import ALL, live_picture
from frugal.visual_tokenizers.methods import TOKENIZERS

OUT = Path(__file__).parents[1] / "lib/frugal/visual_tokenizers/recorded"
PICTURED, BUDGETS = ("crab", "partying face", "hot beverage"), (4, 16, 64)                # held out


def reconstruct() -> None:
    """Every tokenizer at every count."""
    methods = [method for method in ALL if method.kind == "tokenizer" and method.ready()]
    tables = [Sweep("visual_tokenizers", [method], list(method.counts), "reconstruct_all", 1).run(progress=True) for method in methods]
    record(pd.concat(tables, ignore_index=True), OUT / "reconstruct.json")


def codebooks() -> None:
    """How often each code is used on the training pictures."""
    known, rows = load_images(), []
    images = known.pixels[known.train()]
    for method in [m for m in TOKENIZERS if m.ready() and m.name != "hieratok"]:
        for count in method.counts if method.name in ("vq_grid", "titok") else method.counts[-1:]:
            made = method()
            codes = torch.cat([made.encode(part, count) for part in images.split(64)])
            size = made.network(count).quantizer.codebook_size
            for level, part in enumerate(codes.unbind(-1), 1) if codes.ndim == 3 else [(0, codes)]:
                if level in (0, 1, 4, 8):
                    found = codebook_usage(part, size)
                    rows.append({"tokenizer": f"{method.label}, {count} tokens" + (f", level {level}" if level else ""),
                                 "used": found["used"], "perplexity": found["perplexity"],
                                 "counts": " ".join(str(int(n)) for n in found["counts"])})
    record(pd.DataFrame(rows), OUT / "codebooks.json")


def board() -> None:
    """Three held-out pictures through every tokenizer, at three budgets."""
    known, rows = load_images(), []
    for name in PICTURED:
        for budget in BUDGETS:
            rows += [{"name": name, "budget": budget, **row} for row in live_picture.rows_of(known.pixels[known.names.index(name)], budget)]
    record(pd.DataFrame(rows), OUT / "board.json")


def live() -> None:
    """The first answer of the live form."""
    record(pd.DataFrame(live_picture.reconstruct({"name": live_picture.NAME, "budget": 16}, lambda share: None)), OUT / "live_picture.json")


TABLES = {"reconstruct": reconstruct, "codebooks": codebooks, "board": board, "live": live}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    torch.set_num_threads(1)
    for name in parser.parse_args().only:
        TABLES[name]()
