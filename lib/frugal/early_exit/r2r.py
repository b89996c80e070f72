"""R2R: a small model writes, a router watches, and the large model writes the few tokens that would lead elsewhere.

Source: arXiv 2505.21600 (R2R, "Roads to Rome"), section 3; code thu-nics/R2R.
Differs: a pair of 1.8 M and 0.1 M parameters on arithmetic chains. The loop, with the large model's lazily extended cache, is
`frugal.core.pair.generate_pair`. There is no roll-back and no check of accepted tokens, so the text is not the large model's.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.pair import PairRun, PairStep, extend, generate_pair
from frugal.core.papers import paper
from frugal.data.arithmetic_chains import MAX_ANSWER
from frugal.early_exit.r2r_labels import DIVERGENT, label
from frugal.early_exit.r2r_router import TokenRouter, load_router
from frugal.models.r2r_pair import load_pair

__all__ = ["R2R", "PairCost", "Score", "SpeculativeRun", "ask_large", "cost_of", "different", "each_step", "entropy", "log_u", "oracle",
           "random_scores", "router_scores", "speculative"]

Score = Callable[[Tensor, Tensor], Tensor]         # (hidden (n, h), logits (n, V)) of the small model -> (n,)


@dataclass(frozen=True)
class R2R:
    """Token routing between two models of one family.

    threshold: the large model writes a token when the router's probability that it is divergent is at least this; None takes the one
    chosen in training (recall 0.95 of the divergent tokens). 0 sends every token to the large model, above 1 none.
    """
    name: ClassVar[str] = "r2r"
    kind: ClassVar[str] = "model"
    paper: ClassVar = paper("r2r")
    summary: ClassVar[str] = "a small model writes, a large one only the tokens that a router expects to change the meaning"
    threshold: float | None = None

    def __post_init__(self):
        if self.threshold is not None and not 0 <= self.threshold <= 2:
            raise ValueError(f"threshold is {self.threshold}; it is a probability 0..1, or up to 2 to never ask the large model")

    def generate(self, prompt: Sequence[int], pair: tuple | None = None, router: TokenRouter | None = None,
                 max_new_tokens: int = MAX_ANSWER) -> PairRun:
        """The text for a prompt. pair: (large, small), by default the trained one; router: by default the one trained for it."""
        large, small = load_pair() if pair is None else pair
        threshold = self.threshold
        if router is None or threshold is None:
            loaded, chosen = load_router(small)
            router, threshold = router or loaded, chosen if threshold is None else threshold
        return generate_pair(small, large, prompt, each_step(router_scores(router, small)), threshold, max_new_tokens)


# -- other ways to decide who writes. A score sees many steps at once; `each_step` makes it the `decide` of generate_pair ---------

def router_scores(router: TokenRouter, small) -> Score:
    """The router's probability that each proposed token is divergent."""
    embed = small.weights["embed"]
    router.eval()
    return lambda hidden, logits: router(hidden, embed[logits.argmax(-1)], logits).sigmoid()


def random_scores(seed: int = 0) -> Score:
    """Blind routing: uniform numbers, so a threshold of 1 - f sends a share f of the tokens."""
    generator = torch.Generator().manual_seed(seed)
    return lambda hidden, logits: torch.rand(len(logits), generator=generator)


def entropy(hidden: Float[Tensor, "n h"], logits: Float[Tensor, "n v"]) -> Float[Tensor, "n"]:
    """Entropy of the small model's next-token distribution, in nats."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def log_u(hidden: Float[Tensor, "n h"], logits: Float[Tensor, "n v"], count: int = 10) -> Float[Tensor, "n"]:
    """Aleatoric uncertainty: the `count` largest logits read as evidence of a Dirichlet distribution. ValueError with fewer logits.

    Source: `compute_logu` of thu-nics/R2R, after arXiv 2502.00290. Differs: logits here may be negative, which is no evidence, so
    they are shifted to start at 0.
    """
    if logits.shape[-1] < count:
        raise ValueError(f"count is {count}, but there are {logits.shape[-1]} logits")
    top = (logits - logits.amin(-1, keepdim=True)).topk(count, dim=-1).values
    total = top.sum(-1, keepdim=True).clamp_min(1e-6)
    return -((top / total) * (torch.digamma(top + 1) - torch.digamma(total + 1))).sum(-1)


def each_step(score: Score) -> Callable[[PairStep], float]:
    """A score as the `decide` of `generate_pair`, one step at a time."""
    def decide(step: PairStep) -> float:
        with torch.no_grad():
            return float(score(step.hidden[None], step.logits[None]))
    return decide


def ask_large(large) -> Callable[[PairStep], int]:
    """The large model's token after each step's text, from a cache of its own (an oracle asks it at every step)."""
    cache = large.new_cache()
    return lambda step: int(extend(large, cache, step.text).logits[0, -1].argmax())


def different(large) -> Callable[[PairStep], float]:
    """Routes every token on which the models differ: 1.0 there, else 0.0. It must ask the large model each time to know."""
    ask = ask_large(large)
    return lambda step: float(ask(step) != step.token)


def oracle(large) -> Callable[[PairStep], float]:
    """The label itself as the router: 1.0 where the small model's token is divergent. What a perfect router would do."""
    ask = ask_large(large)
    return lambda step: float(label(large, step.text, step.token, ask(step)) == DIVERGENT)


# -- speculative decoding with the same pair: lossless ----------------------------------------------------------------------------

@dataclass
class SpeculativeRun:
    """tokens: the large model's own greedy text. large_read: tokens that each of its calls read; small_steps: tokens drafted."""
    tokens: list[int] = field(default_factory=list)
    large_read: list[int] = field(default_factory=list)
    small_steps: int = 0


@torch.no_grad()
def speculative(small, large, prompt: Sequence[int], gamma: int = 4, max_new_tokens: int = MAX_ANSWER) -> SpeculativeRun:
    """Greedy speculative decoding (arXiv 2211.17192): the small model drafts `gamma` tokens, the large one keeps those it agrees with.

    ValueError for gamma below 1.
    """
    if gamma < 1:
        raise ValueError(f"gamma is {gamma}; the small model drafts at least 1 token")
    run, text, ends = SpeculativeRun(), [int(t) for t in prompt], set(large.config.eos_ids)
    small_cache, large_cache = small.new_cache(), large.new_cache()
    while len(run.tokens) < max_new_tokens and not ends & set(run.tokens[-1:]):
        draft = []
        for _ in range(min(gamma, max_new_tokens - len(run.tokens))):
            draft.append(int(extend(small, small_cache, text + draft).logits[0, -1].argmax()))
            run.small_steps += 1
            if draft[-1] in ends:
                break
        new = len(text) + len(draft) - int(large_cache.num_seen[0])
        logits = extend(large, large_cache, text + draft, last_only=False).logits[0]
        said = logits[-len(draft) - 1:].argmax(-1).tolist()              # after text, then after each drafted token
        agreed = next((i for i, token in enumerate(draft) if token != said[i]), len(draft))
        kept = draft[:agreed] + ([] if agreed and draft[agreed - 1] in ends else said[agreed:agreed + 1])
        kept = kept[:max_new_tokens - len(run.tokens)]
        run.tokens += kept
        run.large_read.append(new)
        text += kept
        for cache in (small_cache, large_cache):                         # forget what was drafted and not kept
            cache.rewind(min(int(cache.num_seen[0]), len(text) - 1))
    return run


# -- what a text has cost ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class PairCost:
    """Per written token. activated: parameters, the paper's count (small + router + share of calls x large). flops: multiply-adds
    as 2, with the large model's late reading of all tokens it skipped. calls: of the large model. read: tokens it read."""
    activated: float
    flops: float
    calls: float
    read: float


def cost_of(num_tokens: int, num_prompt: int, large_read: Sequence[int], small_steps: int, large_size: int, small_size: int,
            router_size: int = 0) -> PairCost:
    """Costs of one text. small_steps: tokens the small model wrote or proposed (0: it is not used); sizes in parameters.

    FLOPs: 2 a parameter and token that goes through (attention over a hundred tokens is small beside it), the prompt included, in
    the small model too.
    """
    calls = len(large_read)
    small_read = num_prompt + small_steps if small_steps else 0
    flops = 2 * (large_size * sum(large_read) + small_size * small_read + router_size * small_steps)
    activated = large_size * calls + (small_size + router_size) * small_steps
    return PairCost(activated / num_tokens, flops / num_tokens, calls / num_tokens, sum(large_read) / num_tokens)
