"""Duo-LLM's learned routers: one linear score a layer on the input of the feed-forward networks.

Trained on a frozen Duo-LM. In training both networks run and are mixed by P(big) = sigmoid(score / temperature); the
temperature falls, so that the mixture sharpens towards the choice that inference makes: big where the score is above 0.

Source: arXiv 2410.10846 (Duo-LLM), stage 3: loss = cross entropy + weight * (mean P(big) - target)^2, with the mean
over all layers and tokens. The budget is global: no layer has to spend its own share.
Differs: with two choices the softmax is written as a sigmoid of the difference of the two scores.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from frugal.models import load_weights
from frugal.models.duo_lm import BIG, SMALL, DuoLM

__all__ = ["LearnedRouter", "budget_penalty", "load_routers", "mixed_text", "train_router"]


@dataclass(frozen=True)
class LearnedRouter:
    """A route for `DuoLM.run`: a token takes the big network where its score is above 0.

    weight (layers, hidden), bias (layers,).
    """

    weight: Float[Tensor, "layers hidden"]
    bias: Float[Tensor, "layers"]

    def score(self, i: int, normed: Float[Tensor, "*n hidden"]) -> Float[Tensor, "*n"]:
        """Score of each token in layer i, from the normed input of its networks."""
        return normed @ self.weight[i] + self.bias[i]

    def __call__(self, i: int, normed: Float[Tensor, "*n hidden"]) -> Int[Tensor, "*n"]:
        return torch.where(self.score(i, normed) > 0, BIG, SMALL)


def mixed_text(
    duo: DuoLM, tokens: Int[Tensor, "b t"], router: LearnedRouter, temperature: float
) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b t layers"]]:
    """Last states and P(big) of whole texts, with gradients: both networks run, weighted by their probability."""
    x, tables, probs = F.embedding(tokens, duo.weights["embed"]), duo.tables(tokens.shape[1]), []
    for i, part in enumerate(duo.layers):
        x = duo.attended(i, x, tables)
        normed = duo.normed(x, part["mlp_norm"])
        probs.append((router.score(i, normed) / temperature).sigmoid())
        small, big = (duo.network(i, which, normed) for which in (SMALL, BIG))
        x = x + small + probs[-1][..., None] * (big - small)
    return x, torch.stack(probs, dim=-1)


def budget_penalty(probs: Float[Tensor, "b t layers"], target: float) -> Float[Tensor, ""]:
    """Squared distance of the mean P(big), over all layers and tokens, from the target share."""
    return (probs.mean() - target).square()


def train_router(
    duo: DuoLM,
    batches: Iterable[Tensor],
    target: float,
    steps: int,
    *,
    weight: float = 20.0,
    rate: float = 0.02,
    hot: float = 1.0,
    cold: float = 0.1,
) -> Iterator[tuple[LearnedRouter, dict[str, float]]]:
    """Train one router for a target share of big networks; yields it with loss, share and temperature after each step.

    batches: token ids (B, T + 1), at least `steps` of them. The temperature falls from `hot` to `cold` geometrically,
    the learning rate linearly to 0. Raises ValueError for a target outside (0, 1); the base model keeps its weights.
    """
    if not 0 < target < 1:
        raise ValueError(f"target {target}: give a share of big networks between 0 and 1, both excluded")
    c = duo.config
    router = LearnedRouter(
        torch.zeros(c.num_layers, c.hidden_size, requires_grad=True),
        torch.full((c.num_layers,), math.log(target / (1 - target)), requires_grad=True),
    )
    optimizer = torch.optim.Adam([router.weight, router.bias], lr=rate, betas=(0.9, 0.98))
    for step, tokens in zip(range(steps), batches):
        progress = step / max(1, steps - 1)
        temperature = hot * (cold / hot) ** progress
        optimizer.param_groups[0]["lr"] = rate * (1 - 0.95 * progress)
        x, probs = mixed_text(duo, tokens[:, :-1], router, temperature)
        logits = F.linear(duo.normed(x, duo.weights["norm"]), duo.head)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        (loss + weight * budget_penalty(probs, target)).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield (
            LearnedRouter(router.weight.detach().clone(), router.bias.detach().clone()),
            {"loss": float(loss.detach()), "share": float(probs.detach().mean()), "temperature": temperature},
        )


def load_routers() -> dict[int, LearnedRouter]:
    """The trained routers by budget (big networks a token on average). Raises WeightsError when they are missing."""
    state, card = load_weights("duo_routers")
    return {k: LearnedRouter(state[f"weight_{k}"], state[f"bias_{k}"]) for k in card["budgets"]}
