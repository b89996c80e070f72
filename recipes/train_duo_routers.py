"""Train the learned routers of Duo-LLM on the frozen Duo-LM: one for each budget of 1 to 5 big networks a token.

    python recipes/train_duo_routers.py

One thread, about a minute a router: 150 steps of 1,024 tokens. Needs the corpus (recipes/build_code_corpus.py) and the
weights of recipes/train_duo_lm.py; writes duo_routers.safetensors and its card.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from frugal.data.code_text import CORPUS_SHA256, load_corpus
from frugal.early_exit.duo_measure import held_out, route_losses
from frugal.early_exit.duo_routers import train_router
from frugal.models import load_card, save_weights
from frugal.models.duo_lm import DuoLM, load_duo_lm

BUDGETS, LENGTH, BATCH = (1, 2, 3, 4, 5), 256, 4


def batches(corpus: Tensor, seed: int) -> Iterator[Tensor]:
    """Random windows of the corpus, (BATCH, LENGTH + 1), without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(corpus) - LENGTH - 1, (BATCH,), generator=generator)
        yield torch.stack([corpus[i : i + LENGTH + 1] for i in starts.tolist()])


def train_one(duo: DuoLM, corpus: Tensor, budget: int, steps: int) -> tuple:
    """(router, its numbers on held-out text: loss and big networks a token)."""
    for step, (router, log) in enumerate(
        train_router(duo, batches(corpus, budget), budget / duo.config.num_layers, steps)
    ):
        if step % 25 == 24:
            print(budget, step + 1, {key: round(value, 4) for key, value in log.items()}, flush=True)
    losses, spent = route_losses(duo, held_out(12), router)
    return router, {"loss": round(float(losses.mean()), 4), "big_layers": round(spent, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    duo, corpus, state, metrics = load_duo_lm(), load_corpus(), {}, {}
    for budget in BUDGETS:
        router, metrics[str(budget)] = train_one(duo, corpus, budget, options.steps)
        state |= {f"weight_{budget}": router.weight, f"bias_{budget}": router.bias}
        print(budget, metrics[str(budget)], flush=True)
    save_weights(
        "duo_routers",
        state,
        {
            "recipe": "recipes/train_duo_routers.py",
            "seed": "the budget",
            "steps": options.steps,
            "budgets": list(BUDGETS),
            "base_sha256": load_card("duo_lm")["sha256"],
            "data_hash": CORPUS_SHA256,
            "metrics": metrics,
        },
    )


if __name__ == "__main__":
    main()
