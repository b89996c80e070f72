"""The two frozen embeddings of every emoji that SETRec starts from: what its name means, and who picks it with what.

    python recipes/embed_emoji.py --publish

Text: mean of SmolLM2-135M's last hidden state over the tokens of the Unicode name, 576 numbers, reduced by PCA to 64 of
unit variance each: a few directions of a language model hold nearly all of the variance and say little about the name.
Co-picking: positive pointwise mutual information of items in the same training session, its leading 64 singular vectors;
cold items are in no session, so theirs is zero; mean square 1 over the warm ones. About one CPU minute.
"""
import argparse
import hashlib

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from frugal import load_lm
from frugal.core.fetch import MODELS
from frugal.data.emoji_sessions import NONE, catalogue, make_sessions
from frugal.models import save_weights

DIM, NUM_SESSIONS, BATCH = 64, 20_000, 64


def name_states(names: tuple[str, ...]) -> Float[ndarray, "n 576"]:
    """Mean last hidden state of each name, in batches of names with equally many tokens, so that nothing is padded."""
    lm = load_lm("smollm2-135m")
    ids = [lm.tokenizer.encode(name, special=False) for name in names]
    states = torch.zeros(len(names), lm.config.hidden_size)
    for length in sorted({len(i) for i in ids}):
        places = [place for place, i in enumerate(ids) if len(i) == length]
        for first in range(0, len(places), BATCH):
            part = places[first:first + BATCH]
            run = lm.run(torch.tensor([ids[place] for place in part]), hidden=True, logits=False)
            states[part] = run.hidden[-1].mean(1)
    return states.numpy().astype(np.float64)


def principal(states: Float[ndarray, "n d"], dim: int = DIM) -> tuple[Float[ndarray, "n dim"], float]:
    """Leading principal components, of unit variance each, and the share of variance they hold."""
    left, sizes, _ = np.linalg.svd(states - states.mean(0), full_matrices=False)
    return left[:, :dim] * len(states) ** 0.5, float((sizes[:dim] ** 2).sum() / (sizes ** 2).sum())


def co_picking(items: Int[ndarray, "u t"], num_items: int, dim: int = DIM) -> Float[ndarray, "n dim"]:
    """Singular vectors of the co-occurrence within sessions, scaled by the root of their singular values."""
    held = np.zeros((len(items), num_items), np.float32)
    rows, places = np.nonzero(items != NONE)
    held[rows, items[rows, places]] = 1
    both = (held.T @ held).astype(np.float64)
    np.fill_diagonal(both, 0)
    expected = np.outer(both.sum(1), both.sum(0)) / both.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where(both > 0, np.maximum(np.log(both / expected), 0), 0)
    left, sizes, _ = np.linalg.svd(information)
    parts = left[:, :dim] * sizes[:dim] ** 0.5
    return parts / (parts[held.any(0)] ** 2).mean() ** 0.5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--publish", action="store_true", help="write them into the package")
    args = parser.parse_args()
    shop, sessions = catalogue(), make_sessions("train", NUM_SESSIONS)
    text, share = principal(name_states(shop.names))
    cf = co_picking(sessions.items, shop.num_items)
    near = np.argsort(-(text @ text.T) / np.outer(*[np.linalg.norm(text, axis=1)] * 2), 1)[:, 1]
    card = {"recipe": "recipes/embed_emoji.py", "seed": 2502, "data_hash": hashlib.sha256(sessions.items.tobytes()).hexdigest()[:16],
            "text_model": MODELS["smollm2-135m"].sha256, "licence": "embeddings of SmolLM2-135M (Apache-2.0)",
            "metrics": {"text_variance": round(share, 3), "cold_cf_largest": float(np.abs(cf[shop.cold]).max()),
                        "nearest_name_in_subgroup": round(float((shop.subgroup[near] == shop.subgroup).mean()), 3)}}
    print(card["metrics"])
    if args.publish:
        print("published", save_weights("setrec_items", {"text": torch.tensor(text), "cf": torch.tensor(cf)}, card))
