"""Duo-LLM: a big or a small feed-forward network for every token and layer, under a budget of big ones.

The budget is the mean number of big networks a token runs, 0 (all small) to the number of layers (all big). Fixed
patterns spend it the same way for every token, a learned router (`duo_routers`) decides from the state, an oracle
(`duo_oracle`) from the answer. The model that really skips what is not chosen is `frugal.models.duo_lm`.

Source: arXiv 2410.10846 (Duo-LLM); the numbers of the paper come from a detailed third-party reading.
Differs: 6 layers, 4 M parameters and Python source as text, instead of 12 layers and 1.4 B parameters.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from frugal.core.budgets import resolve
from frugal.core.papers import Paper, paper
from frugal.core.roofline import Cost, Number
from frugal.models.duo_lm import BIG, SMALL, DuoConfig, Route, follow

__all__ = ["FIXED", "DuoLLM", "decode_cost", "fixed_pattern", "forward_flops", "random_patterns"]

FIXED = ("first", "last", "spread")


def fixed_pattern(kind: str, budget: int, num_layers: int) -> list[int]:
    """One choice a layer, `budget` of them big: the "first" layers, the "last" ones, or an even "spread".

    Raises ValueError for a budget outside 0..num_layers or another kind.
    """
    _check_budget(budget, num_layers)
    if kind not in FIXED:
        raise ValueError(f"pattern {kind!r} is not known; there are {', '.join(FIXED)}")
    places = {
        "first": range(budget),
        "last": range(num_layers - budget, num_layers),
        "spread": [(2 * j + 1) * num_layers // (2 * budget) for j in range(budget)],
    }[kind]
    return [BIG if i in set(places) else SMALL for i in range(num_layers)]


def random_patterns(
    batch: int, num_tokens: int, num_layers: int, budget: int, generator: torch.Generator
) -> Int[Tensor, "b t layers"]:
    """A pattern of its own for every token: `budget` layers, drawn without replacement, are big."""
    _check_budget(budget, num_layers)
    order = torch.rand(batch, num_tokens, num_layers, generator=generator).argsort(-1)
    return torch.where(order < budget, BIG, SMALL)


def _check_budget(budget: int, num_layers: int) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int) or not 0 <= budget <= num_layers:
        raise ValueError(
            f"budget {budget!r}: give a whole number of big networks, 0 (all small) to {num_layers} (all big)"
        )


def forward_flops(
    config: DuoConfig, choices: Int[Tensor, "b t layers"], num_past: int = 0, last_only: bool = False
) -> int:
    """FLOPs of the products of one forward pass, a multiply-add is 2; exact for what `DuoLM.run` computes.

    choices: what every token ran. Attention counts every new token with every slot, as dense kernels compute it.
    """
    c, (batch, new, layers) = config, choices.shape
    width, tokens = c.num_heads * c.head_dim, batch * new
    projections = 2 * c.hidden_size * (2 * width + 2 * c.num_kv_heads * c.head_dim) * tokens
    attention = 4 * width * tokens * (new + num_past)
    inner = int((choices == BIG).sum()) * c.intermediate_size + int((choices == SMALL).sum()) * c.small_size
    head = 2 * c.hidden_size * c.vocab_size * (batch if last_only else tokens)
    return layers * (projections + attention) + 6 * c.hidden_size * inner + head


def decode_cost(config: DuoConfig, big_layers: Number, context: int = 0, bits: int = 32) -> Cost:
    """One decoded token of one sequence that runs `big_layers` big networks and small ones else (a mean may be broken).

    Bytes: each weight that is used once, the cache of `context` tokens once.
    """
    c = config
    width, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    inner = big_layers * c.intermediate_size + (c.num_layers - big_layers) * c.small_size
    weights = (
        c.num_layers * c.hidden_size * (2 * width + 2 * kv) + 3 * c.hidden_size * inner + c.vocab_size * c.hidden_size
    )
    return Cost(
        flops=2 * weights + 4 * c.num_layers * width * (context + 1),
        bytes=(weights + 2 * c.num_layers * kv * context) * bits / 8,
    )


@dataclass(frozen=True)
class DuoLLM:
    """A budget of big feed-forward networks a token, spent by a learned router or by a fixed pattern; on the Duo-LM.

    budget_layers: big networks a token on average (a router), or exactly (a pattern); a share of the layers is allowed.
    by: "router", "random", "first", "last" or "spread".
    """

    name: ClassVar[str] = "duo_llm"
    paper: ClassVar[Paper] = paper("duo_llm")
    summary: ClassVar[str] = "each token takes a big or a small feed-forward network in every layer, under a budget"
    kind: ClassVar[str] = "model"
    budget_layers: int | float = 3
    by: str = "router"

    def route(self, config: DuoConfig, seed: int = 0) -> Route:
        """What `DuoLM.run(tokens, route=...)` takes. Raises ValueError for an unknown `by` or a bad budget."""
        budget = self.budget_layers if self.budget_layers == 0 else resolve(self.budget_layers, config.num_layers)
        _check_budget(budget, config.num_layers)
        if self.by == "router":
            from frugal.early_exit.duo_routers import load_routers

            return _all(budget, config) or load_routers()[budget]
        if self.by == "random":
            return _random_route(budget, config.num_layers, torch.Generator().manual_seed(seed))
        if self.by not in FIXED:
            raise ValueError(f"by={self.by!r} is not known; there are router, random, {', '.join(FIXED)}")
        return follow(fixed_pattern(self.by, budget, config.num_layers))


def _all(budget: int, config: DuoConfig) -> Route | None:
    """At the ends of the scale there is nothing to learn."""
    return follow(fixed_pattern("first", budget, config.num_layers)) if budget in (0, config.num_layers) else None


def _random_route(budget: int, num_layers: int, generator: torch.Generator) -> Route:
    drawn: list[Tensor] = []

    def route(i: int, x: Tensor) -> Tensor:
        if i == 0:  # a pattern spans the layers of one pass: drawn at the first
            drawn[:] = [random_patterns(*x.shape[:2], num_layers, budget, generator)]
        return drawn[0][..., i]

    return route
