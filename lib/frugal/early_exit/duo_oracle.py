"""Duo-LLM's oracles: for every token the routing pattern that predicts the next token best, among all there are.

A pattern says for each layer big, small or skip. The oracle looks at the true next token, so no router can be it; it
bounds what routing could win. Two oracles differ in what earlier tokens ran while a token's patterns are compared:
  uniform      each pattern runs the whole text, and every token takes its own minimum afterwards. Optimistic: the
               patterns that neighbouring tokens take never meet in one cache.
  sequential   left to right; earlier tokens keep the keys and values of the pattern they took, all patterns of the
               current token are one batch over them. Exact: the loss is that of a text really run this way.
Both share prefixes: patterns that agree in the first layers are one state there (126 layer runs for 64 patterns).

Source: arXiv 2410.10846 (Duo-LLM), the oracle and the difficulty of a token.
Differs: the paper does not settle the state of earlier tokens, hence two oracles; `perturbed` is our control for the
part of the gain that comes from taking a minimum over many candidates.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from frugal.core.linear import linear
from frugal.core.rope import apply
from frugal.models.duo_lm import BIG, CHOICES, SMALL, DuoLM

__all__ = [
    "Picks",
    "best_pattern",
    "difficulty",
    "num_big",
    "patterns",
    "perturbed",
    "perturbed_losses",
    "sequential_oracle",
    "uniform_losses",
]


def patterns(num_layers: int, choices: Sequence[int] = (SMALL, BIG)) -> Int[Tensor, "patterns layers"]:
    """All patterns, the last layer changing fastest: row 0 is the first choice everywhere."""
    if num_layers < 1 or not choices or not set(choices) <= set(CHOICES) or len(set(choices)) < len(choices):
        raise ValueError(
            f"{num_layers} layers and choices {tuple(choices)}: give at least one layer and different choices of "
            f"{CHOICES}"
        )
    return torch.tensor(list(itertools.product(choices, repeat=num_layers)))


def num_big(found: Int[Tensor, "*n layers"]) -> Int[Tensor, "*n"]:
    """Big networks of each pattern: what a budget counts."""
    return (found == BIG).sum(-1)


def next_losses(logits: Float[Tensor, "*n vocab"], tokens: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Cross entropy of each row with its own next token, in nats."""
    return F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none").view(tokens.shape)


@torch.no_grad()
def uniform_losses(
    duo: DuoLM, tokens: Int[Tensor, "b t_plus_1"], choices: Sequence[int] = (SMALL, BIG)
) -> Float[Tensor, "patterns b t"]:
    """Loss (nats) of every pattern, run over the whole text, at every token; rows in the order of `patterns`."""
    texts, wanted, losses = tokens[:, :-1], tokens[:, 1:], []
    tables, depth = duo.tables(texts.shape[1]), duo.config.num_layers

    def walk(i: int, x: Tensor) -> None:
        if i == depth:
            return losses.append(next_losses(duo.unembed(x), wanted))
        x = duo.attended(i, x, tables)  # once for all patterns that begin alike
        normed = duo.normed(x, duo.layers[i]["mlp_norm"])
        for which in choices:
            walk(i + 1, x + duo.network(i, which, normed))

    walk(0, duo.weights["embed"][texts])
    return torch.stack(losses)


def best_pattern(
    losses: Float[Tensor, "patterns *n"], big: Int[Tensor, "patterns"], budget: int | None = None
) -> tuple[Int[Tensor, "*n"], Float[Tensor, "*n"]]:
    """(row of the best pattern, its loss) of every token, among the patterns with exactly `budget` big networks.

    big: `num_big` of each row. budget None: among all. Raises ValueError when no pattern has that many.
    """
    allowed = torch.ones_like(big, dtype=torch.bool) if budget is None else big == budget
    if not allowed.any():
        raise ValueError(
            f"budget {budget}: no pattern has that many big networks; there are {sorted(set(big.tolist()))}"
        )
    rows = allowed.nonzero()[:, 0]
    least = losses[rows].min(0)
    return rows[least.indices], least.values


def difficulty(losses: Float[Tensor, "patterns *n"], big: Int[Tensor, "patterns"]) -> Float[Tensor, "*n"]:
    """Nats that the best pattern saves over the cheapest one: large only where computing more would help.

    A token that no pattern predicts has a large loss and no difficulty.
    """
    return losses[int(big.argmin())] - losses.min(0).values


@dataclass(frozen=True)
class Picks:
    """What an oracle took. losses (rules, B, T) in nats; picks (rules, B, T): rows of `patterns`."""

    losses: Float[Tensor, "rules b t"]
    picks: Int[Tensor, "rules b t"]


# (layer, states before the network, their normed form), (rows, P, hidden) -> states (rows, P * branches, hidden)
Grow = Callable[[int, Tensor, Tensor], Tensor]


def sequential_oracle(
    duo: DuoLM, tokens: Int[Tensor, "b t_plus_1"], budgets: Sequence[int | None], choices: Sequence[int] = (SMALL, BIG)
) -> Picks:
    """The exact oracle at each budget (big networks a token; None: any number). Earlier tokens keep what they took."""
    big = num_big(patterns(duo.config.num_layers, choices))
    allowed = torch.stack([torch.ones_like(big, dtype=torch.bool) if k is None else big == k for k in budgets])
    if not allowed.any(-1).all():
        raise ValueError(f"budgets {list(budgets)}: patterns hold {sorted(set(big.tolist()))} big networks")

    def grow(i: int, x: Tensor, normed: Tensor) -> Tensor:
        return torch.stack([x + duo.network(i, which, normed) for which in choices], dim=2).flatten(1, 2)

    return _left_to_right(duo, tokens, grow, allowed)


def perturbed(
    duo: DuoLM, tokens: Int[Tensor, "b t_plus_1"], counts: Sequence[int], rate: float, generator: torch.Generator
) -> Picks:
    """The selection control of the exact oracle: all big, and per token the best of `counts` random dropout masks.

    Everything else is as in `sequential_oracle`: earlier tokens keep the keys of the mask they took.
    rate: share of the inner units set to zero. picks: number of the mask.
    """
    most = max(counts)
    allowed = torch.arange(most) < torch.tensor(list(counts))[:, None]

    def grow(i: int, x: Tensor, normed: Tensor) -> Tensor:
        if x.shape[1] < most:
            x, normed = (one.expand(-1, most, -1) for one in (x, normed))
        return x + _dropped(duo, i, normed, rate, generator)

    return _left_to_right(duo, tokens, grow, allowed)


@torch.no_grad()
def perturbed_losses(
    duo: DuoLM, tokens: Int[Tensor, "b t_plus_1"], count: int, rate: float, generator: torch.Generator
) -> Float[Tensor, "count b t"]:
    """The selection control of the uniform oracle: losses of `count` runs of all big over the whole text, each with
    dropout masks of its own."""
    texts, tables, losses = tokens[:, :-1], duo.tables(tokens.shape[1] - 1), []
    for _ in range(count):
        x = duo.weights["embed"][texts]
        for i, part in enumerate(duo.layers):
            x = duo.attended(i, x, tables)
            x = x + _dropped(duo, i, duo.normed(x, part["mlp_norm"]), rate, generator)
        losses.append(next_losses(duo.unembed(x), tokens[:, 1:]))
    return torch.stack(losses)


def _dropped(duo: DuoLM, i: int, normed: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    if not 0 <= rate < 1:
        raise ValueError(f"a dropout rate is in [0, 1), not {rate}")
    gate_up, down = duo.networks[i][BIG]
    gate, up = linear(normed, gate_up).chunk(2, dim=-1)
    inner = F.silu(gate) * up
    kept = torch.rand(inner.shape, generator=generator) >= rate
    return linear(inner * kept / (1 - rate), down)


@torch.no_grad()
def _left_to_right(duo: DuoLM, tokens: Tensor, grow: Grow, allowed: Bool[Tensor, "rules candidates"]) -> Picks:
    """Each row (rule, text) walks through its tokens and keeps, at each, the allowed candidate of the least loss."""
    c, (rules, candidates), (batch, length) = duo.config, allowed.shape, tokens.shape
    texts = tokens.repeat(rules, 1)  # (R, T + 1)
    allow = allowed.repeat_interleave(batch, 0)  # (R, candidates)
    cos, sin = duo.tables(length - 1)
    keys = torch.zeros(c.num_layers, len(texts), length - 1, c.num_kv_heads, c.head_dim)
    values, every = torch.zeros_like(keys), torch.arange(len(texts))
    losses, picks = [], []
    for t in range(length - 1):
        x, own = duo.weights["embed"][texts[:, t]][:, None], []  # (R, 1, hidden)
        for i, part in enumerate(duo.layers):
            x, k, v = _attended(duo, i, x, cos[0, t], sin[0, t], keys[i, :, :t], values[i, :, :t])
            own.append((k, v))
            x = grow(i, x, duo.normed(x, part["mlp_norm"]))
        wanted = texts[:, t + 1, None].expand(-1, candidates)
        found = torch.full((len(texts), candidates), torch.inf)
        found[allow] = next_losses(duo.unembed(x[allow][None])[0], wanted[allow])  # logits of allowed candidates alone
        least = found.min(-1)
        for i, (k, v) in enumerate(own):  # the state that the chosen candidate descends from
            parent = least.indices // (candidates // k.shape[1])
            keys[i, :, t], values[i, :, t] = k[every, parent], v[every, parent]
        losses.append(least.values)
        picks.append(least.indices)
    return Picks(*(torch.stack(one, -1).view(rules, batch, -1) for one in (losses, picks)))


def _attended(
    duo: DuoLM, i: int, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """States of the candidates of one token (R, P, hidden) after attention over the past (R, t, K, D) and themselves;
    and their own keys and values (R, P, K, D). A candidate sees no other candidate."""
    c, part = duo.config, duo.layers[i]
    qkv = linear(duo.normed(x, part["attn_norm"]), part["qkv"]).unflatten(-1, (-1, c.head_dim))
    q, k, v = qkv.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=2)
    q, k = apply(q, cos, sin) * c.head_dim**-0.5, apply(k, cos, sin)
    grouped = rearrange(q, "r p (k g) d -> r k (g p) d", k=c.num_kv_heads)
    past = rearrange(grouped @ rearrange(keys, "r t k d -> r k d t"), "r k (g p) t -> r p k g t", p=x.shape[1])
    self_score = torch.einsum("rpkgd,rpkd->rpkg", q.unflatten(2, (c.num_kv_heads, -1)), k)
    weights = torch.cat([past, self_score[..., None]], dim=-1).softmax(-1)
    mixed = rearrange(weights[..., :-1], "r p k g t -> r k (g p) t") @ rearrange(values, "r t k d -> r k t d")
    mixed = rearrange(mixed, "r k (g p) d -> r p k g d", p=x.shape[1]) + weights[..., -1:] * v[:, :, :, None]
    return x + linear(mixed.flatten(2), part["o"]), k, v
