"""How well a recommender finds the next pick, user by user: Recall@10 and NDCG@10 over all, warm and cold items.

Source: repository Linxyhaha/SETRec, `inference_t5.py`: "all" ranks the whole catalogue, "warm" ranks warm items for those who
pick a warm one, "cold" ranks cold items for those who pick a cold one.
Differs: every test user has a warm and a cold next pick, so that all count in both; items of the history are never ranked.
"""
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from frugal.data.emoji_sessions import NONE, Sessions, catalogue, next_probs
from frugal.visual_tokenizers.setrec import SETRec, ground_items, newest
from frugal.visual_tokenizers.setrec_sequence import SequenceIds

KINDS = ("all", "warm", "cold")                  # in the order of Sessions.targets
BETAS = tuple(round(0.1 * step, 1) for step in range(11))
TOP = 10


def kinds() -> dict[str, Tensor]:
    """(M,) True for the items that are ranked."""
    cold = torch.from_numpy(catalogue().cold)
    return {"all": torch.ones_like(cold), "warm": ~cold, "cold": cold}


def histories(sessions: Sessions) -> list[tuple[Int[Tensor, "k"], Int[Tensor, "k t"]]]:
    """(places, histories) of users who have equally many picks: no padding is needed within a group."""
    items, groups = torch.from_numpy(sessions.items), []
    for length in sorted(set(sessions.lengths.tolist())):
        places = torch.from_numpy((sessions.lengths == length).nonzero()[0])
        groups.append((places, items[places, :length]))
    return groups


def ranks(scores: Float[Tensor, "b m"], targets: Int[Tensor, "b 3"], history: Int[Tensor, "b t"]) -> Int[Tensor, "b 3"]:
    """Place of each target (1 = first) among the items of its kind; ties count against the target."""
    scores = scores.scatter(1, history.clamp(min=0), float("-inf"))
    found = []
    for column, allowed in enumerate(kinds().values()):
        own = scores.gather(1, targets[:, column:column + 1])
        found.append(((scores >= own) & allowed).sum(1))
    return torch.stack(found, 1)


def hits(places: Int[Tensor, "u 3"]) -> dict[str, ndarray]:
    """Recall@10 and NDCG@10 of every user (one target each, so recall is 0 or 1 and NDCG is 1 / log2(1 + place))."""
    inside = (places <= TOP) & (places > 0)
    gain = torch.where(inside, 1 / (1 + places.clamp(min=1).double()).log2(), 0.0)
    return {f"{name}_{kind}": side[:, column].double().numpy() for name, side in (("recall", inside), ("ndcg", gain))
            for column, kind in enumerate(KINDS)}


def recall_rows(model: nn.Module, sessions: Sessions, beta: float = 0.5, beam: int = 20) -> dict[str, ndarray]:
    """One number a user for each of recall_all ... ndcg_cold. beta is SETRec's, beam that of sequence ids."""
    if isinstance(model, SETRec):
        return recall_by_beta(model, sessions, [beta])[beta]
    targets = torch.from_numpy(sessions.targets)
    places = torch.zeros_like(targets)
    for users, history in histories(sessions):
        if isinstance(model, SequenceIds):
            places[users] = beam_ranks(model, history, targets[users], beam)
        else:
            places[users] = ranks(model.scores(history), targets[users], history)
    return hits(places)


@torch.no_grad()
def recall_by_beta(model: SETRec, sessions: Sessions, betas: Sequence[float] = BETAS) -> dict[float, dict[str, ndarray]]:
    """What `recall_rows` gives, for every beta: one forward pass a user, since beta only weighs its answers."""
    targets, tokens = torch.from_numpy(sessions.targets), model.catalogue_tokens()
    places = {beta: torch.zeros_like(targets) for beta in betas}
    for users, history in histories(sessions):
        answers = model.answers(tokens[newest(history, model.num_items)])
        for beta in betas:
            places[beta][users] = ranks(ground_items(answers, tokens, beta), targets[users], history)
    return {beta: hits(found) for beta, found in places.items()}


def beam_ranks(model: SequenceIds, history: Int[Tensor, "b t"], targets: Int[Tensor, "b 3"], beam: int, chunk: int = 50
               ) -> Int[Tensor, "b 3"]:
    """Places of the targets among what the beam search found, of their kind; 0 where it did not find them. Warm and cold
    rankings search anew, on a trie of those items alone. chunk: users a search, which bounds the memory of their beams."""
    found = torch.zeros_like(targets)
    for column, allowed in enumerate(kinds().values()):
        for first in range(0, len(history), chunk):
            part = slice(first, first + chunk)
            same = model.recommend(history[part], beam, TOP, allowed).items == targets[part, column:column + 1]
            found[part, column] = torch.where(same.any(1), same.int().argmax(1) + 1, 0)
    return found


def choose_beta(model: SETRec, sessions: Sessions) -> float:
    """The beta with the best Recall@10 over all items, on users that no table reports."""
    found = {beta: rows["recall_all"].mean() for beta, rows in recall_by_beta(model, sessions).items()}
    return max(found, key=found.get)


def ceiling_rows(sessions: Sessions) -> dict[str, ndarray]:
    """What a ranking by the true chances reaches: it knows the user's likes and taste, which a session only hints at."""
    chances = torch.from_numpy(next_probs(sessions.users, sessions.items))
    history = torch.from_numpy(np.where(sessions.items == NONE, sessions.items[:, :1], sessions.items))
    return hits(ranks(chances, torch.from_numpy(sessions.targets), history))
