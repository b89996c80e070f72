"""R2R's router: from what the small model knows at a token, how likely that token would lead the text elsewhere.

Inputs, all of the small model at the current step: its last hidden state, the embedding of the token it proposes, and its largest
logits in falling order. They are joined and go through a linear layer and residual blocks to one number.

Source: arXiv 2505.21600 (R2R), section 3.3, and `r2r/models/router.py` of thu-nics/R2R.
Differs: width 128 and 2 blocks of twice the width, not 1024, 6 and four times (the small model has 0.1 M parameters, not 1.5 B); all
logits, because there are fewer than 100; learning rate 1e-3 over a few epochs, not 5e-5 over 50.
"""
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from frugal.data.arithmetic_chains import PAD
from frugal.early_exit.r2r_labels import DIVERGENT, Labelled, read

__all__ = ["TokenRouter", "choose_threshold", "fit", "load_router", "rates", "scores_of"]

RECALL, NUM_THRESHOLDS = 0.95, 100


class _Block(nn.Module):
    """x + MLP(LayerNorm(x)), with dropout while training."""

    def __init__(self, width: int, growth: int, dropout: float):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, growth * width), nn.Linear(growth * width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        inner = F.dropout(F.gelu(self.up(self.norm(x))), self.dropout, self.training)
        return x + F.dropout(self.down(inner), self.dropout, self.training)


class TokenRouter(nn.Module):
    """hidden_size: of the small model. num_logits: how many of its largest logits are shown."""

    def __init__(self, hidden_size: int, num_logits: int, width: int = 128, num_blocks: int = 2, growth: int = 2, dropout: float = 0.1):
        super().__init__()
        self.shape = dict(hidden_size=hidden_size, num_logits=num_logits, width=width, num_blocks=num_blocks, growth=growth)
        self.logits = nn.Linear(num_logits, hidden_size)
        self.join = nn.Linear(3 * hidden_size, width)
        self.blocks = nn.ModuleList(_Block(width, growth, dropout) for _ in range(num_blocks))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 1)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, hidden: Float[Tensor, "n h"], embedded: Float[Tensor, "n h"], logits: Float[Tensor, "n v"]
                ) -> Float[Tensor, "n"]:
        """Log-odds that each proposed token is divergent."""
        top = logits.topk(self.shape["num_logits"], dim=-1).values
        x = self.join(torch.cat([hidden, embedded, self.logits(top)], dim=-1))
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))[:, 0]


def _examples(small, labelled: Sequence[Labelled], rng: np.random.Generator | None, batch: int = 64
              ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(hidden, embedded, logits, divergent) of all answer tokens, some texts at a time; in random order with `rng`.

    Recomputed by reading the texts: the states of a million tokens would fill the memory.
    """
    order = np.arange(len(labelled)) if rng is None else rng.permutation(len(labelled))
    for first in range(0, len(order), batch):
        part = [labelled[i] for i in order[first:first + batch]]
        texts = torch.full((len(part), max(len(one.text) for one in part)), PAD)
        wanted, target = torch.zeros(texts.shape, dtype=torch.bool), torch.zeros(texts.shape)
        for row, one in enumerate(part):
            texts[row, :len(one.text)] = torch.tensor(one.text)
            span = slice(one.num_prompt - 1, len(one.text) - 1)                     # the state at t proposes token t + 1
            wanted[row, span] = True
            target[row, span] = torch.tensor([float(kind == DIVERGENT) for kind in one.kind])
        hidden, logits = read(small, texts)
        logits = logits[wanted]
        yield hidden[wanted], small.weights["embed"][logits.argmax(-1)], logits, target[wanted]


@torch.no_grad()
def scores_of(router: TokenRouter, small, labelled: Sequence[Labelled]) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
    """(probability, divergent) of every answer token, in the order of the texts."""
    router.eval()
    found = [(router(h, e, z).sigmoid(), y > 0) for h, e, z, y in _examples(small, labelled, None)]
    return torch.cat([p for p, _ in found]), torch.cat([y for _, y in found])


def fit(small, labelled: Sequence[Labelled], epochs: int = 6, rate: float = 1e-3, weight_decay: float = 5e-4, seed: int = 0,
        router: TokenRouter | None = None, report: Callable[[dict], None] | None = None) -> TokenRouter:
    """Trains a router on labels: binary cross entropy, the positives weighted by negatives / positives.

    ValueError when no token is divergent: there is nothing to route.
    """
    kinds = np.concatenate([one.kind for one in labelled])
    positives = int((kinds == DIVERGENT).sum())
    if not positives:
        raise ValueError(f"none of {len(kinds)} tokens is divergent: label more problems, or take a smaller small model")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = small.config
    router = TokenRouter(config.hidden_size, min(100, config.vocab_size)) if router is None else router
    optimizer = torch.optim.AdamW(router.parameters(), lr=rate, weight_decay=weight_decay)
    steps = epochs * -(-len(labelled) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    weight = torch.tensor((len(kinds) - positives) / positives)
    router.train()
    for epoch in range(epochs):
        losses = []
        for hidden, embedded, logits, target in _examples(small, labelled, rng):
            loss = F.binary_cross_entropy_with_logits(router(hidden, embedded, logits), target, pos_weight=weight)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(float(loss.detach()))
        if report is not None:
            report({"epoch": epoch + 1, "loss": round(float(np.mean(losses)), 4)})
    return router.eval()


def rates(scores: Float[Tensor, "n"], divergent: Bool[Tensor, "n"], threshold: float) -> tuple[float, float]:
    """(recall, false-positive rate) of routing where score >= threshold."""
    routed = scores >= threshold
    return routed[divergent].double().mean().item(), routed[~divergent].double().mean().item()


def choose_threshold(scores: Float[Tensor, "n"], divergent: Bool[Tensor, "n"], recall: float = RECALL,
                     count: int = NUM_THRESHOLDS) -> float:
    """Of `count` thresholds evenly in 0..1 the one with the lowest false-positive rate among those that reach `recall`.

    Ties go to the higher threshold. ValueError when no token is divergent or recall is not in (0, 1].
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall is {recall}; it is a share in (0, 1], the paper takes {RECALL}")
    if not divergent.any():
        raise ValueError("no token is divergent: recall is not defined; label more problems")
    if divergent.all():
        raise ValueError("every token is divergent: the false-positive rate is not defined; label more problems")
    best = (2.0, 0.0)
    for threshold in np.linspace(0, 1, count).tolist():
        found, false = rates(scores, divergent, threshold)
        if found >= recall and false <= best[0]:
            best = (false, threshold)
    return best[1]


def load_router(small) -> tuple[TokenRouter, float]:
    """(router, threshold) from the package's weights. Raises WeightsError when they are missing, ValueError for another small model."""
    from frugal.models import load_weights
    weights, card = load_weights("r2r_router")
    if card["shape"]["hidden_size"] != small.config.hidden_size:
        raise ValueError(f"the router reads {card['shape']['hidden_size']} numbers a state, {small.name!r} has "
                         f"{small.config.hidden_size}: a router belongs to one small model")
    router = TokenRouter(**card["shape"])
    router.load_state_dict(weights)
    return router.eval(), card["threshold"]
