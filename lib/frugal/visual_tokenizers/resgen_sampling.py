"""Sampling with depth masks: draw every hidden sum at once, keep the surest slots, shallow before deep, and repeat.

Source: arXiv 2412.10208, section 3.
Differs: a slot's key is its place's log density plus noise of its own, made to fall with depth by a running minimum, so that
what stays hidden is always the deep end; the noise fades to 0 over the steps, as in MaskGIT. Where a step starts with codes that
are known already (`start`), the schedule counts the hidden ones only.
"""

from collections.abc import Callable
from math import ceil, cos, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.sampling import check_filters, draw
from frugal.models.mini_maskgit import gumbel
from frugal.visual_tokenizers.resgen import DepthMasked, ResGen, visible


def hidden_counts(slots: int, num_steps: int) -> list[int]:
    """Slots still hidden after each step: ceil(cos(pi/2 (s+1)/T) * slots), and none after the last.

    >>> hidden_counts(16, 4)
    [15, 12, 7, 0]
    """
    # cos(pi/2) is 6e-17 in floating point, which ceil would make 1: the last step is set by hand
    return [ceil(cos(pi / 2 * (s + 1) / num_steps) * slots - 1e-9) for s in range(num_steps - 1)] + [0]


def residual_codes(
    z: Float[Tensor, "*n d"], hidden: Int[Tensor, "*n"], codebooks: Float[Tensor, "depth k d"]
) -> Int[Tensor, "*n depth"]:
    """Codes of the `hidden` deepest levels whose vectors sum to about z, chosen greedily from shallow to deep; the other
    levels are left at 0, and z is not spent on them."""
    depth, left, codes = len(codebooks), z, []
    halves = codebooks.square().sum(-1) / 2
    for level in range(depth):
        near = (left @ codebooks[level].T - halves[level]).argmax(-1)
        mine = level >= depth - hidden
        codes.append(near * mine)
        left = left - codebooks[level][near] * mine[..., None]
    return torch.stack(codes, -1)


def next_hidden(
    score: Float[Tensor, "b l"], noise: Float[Tensor, "b l depth"], hidden: Int[Tensor, "b l"], counts: Int[Tensor, "b"]
) -> Int[Tensor, "b l"]:
    """How many levels each place hides when just counts[b] slots may stay hidden: those with the lowest score + noise,
    where a deeper slot never has the higher key of its place. Slots seen before stay seen."""
    masked = ~visible(hidden, noise.shape[-1])
    key = torch.where(masked, score[..., None] + noise, float("inf")).cummin(-1).values
    order = key.flip(-1).flatten(1).argsort(dim=-1, stable=True)  # ties within a place: the deeper slot stays hidden
    low = order.argsort(-1) < counts[:, None]
    return (low.unflatten(1, key.shape[1:]).flip(-1) & masked).sum(-1)


def propose(
    model: ResGen,
    codes: Tensor,
    hidden: Tensor,
    classes: Tensor,
    generator: torch.Generator | None,
    temperature: float | int,
    top_p: float | int,
) -> tuple[Int[Tensor, "b l depth"], Float[Tensor, "b l"]]:
    """(codes with the hidden levels drawn anew, log density of each place's draw).

    A component by its weight, within top_p; a vector around its mean with the spread times `temperature`; its codes.
    """
    mixture = model.head(model.states(codes, hidden, classes))
    component = draw(mixture.log_weights, generator, 1.0 if temperature else 0.0, 0, top_p)
    noise = torch.randn(mixture.spread.shape + (model.dim,), generator=generator)
    z = mixture.at(component) + temperature * mixture.spread[..., None] * noise
    made = residual_codes(z * model.spread_of(hidden), hidden, model.codebooks)
    return torch.where(visible(hidden, model.depth), codes, made), mixture.log_prob(z)


@torch.no_grad()
def generate(
    model: DepthMasked,
    classes: Int[Tensor, "b"],
    generator: torch.Generator | None = None,
    num_steps: int = 8,
    temperature: float | int = 1.0,
    top_p: float | int = 1.0,
    confidence: float | int = 1.0,
    start: tuple[Int[Tensor, "b l depth"], Int[Tensor, "b l"]] | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    propose: Callable = propose,
) -> Int[Tensor, "b l depth"]:
    """(B, L, D) codes in `num_steps` forward passes over L places.

    temperature, top_p: see `propose`; 0 takes the likeliest component's mean. confidence: noise of the first step when slots
    are ranked; it falls to 0 in a line. start: (codes, hidden levels) to go on from; None hides all. on_step(s, codes,
    hidden) after every step, where codes hold a guess for the hidden slots too. propose: draws of another head.
    Raises ValueError for settings out of range.
    """
    slots = model.length * model.depth
    check_filters(temperature, 0, top_p)
    check_filters(confidence)
    if not 1 <= num_steps <= slots:
        raise ValueError(f"num_steps must be in 1..{slots} (the slots of a picture), got {num_steps}")
    shape = (len(classes), model.length, model.depth)
    codes, hidden = start or (torch.zeros(shape, dtype=torch.long), torch.full(shape[:2], model.depth))
    model.check(codes, classes)
    counts = torch.tensor([hidden_counts(n, num_steps) for n in hidden.sum(1).tolist()])  # (B, T)
    for step in range(num_steps):
        codes, score = propose(model, codes, hidden, classes, generator, temperature, top_p)
        noise = confidence * (1 - (step + 1) / num_steps) * gumbel(shape, generator)
        hidden = next_hidden(score, noise, hidden, counts[:, step])
        if on_step is not None:
            on_step(step, codes.clone(), hidden.clone())
    return codes
