"""FastV: inside the decoder, the question's last token says which visual tokens later blocks may forget.

Blocks 0..k-1 run on everything. Then the visual tokens are ranked by the attention that the prompt's last token gave
them in block k-1, mean over heads; the lowest go. Hidden states are gathered, and later blocks run on, and cache,
only what is left. So unlike the other methods it reads the question, and it pays for all tokens in its first blocks.

Source: arXiv 2403.06764, section 4.1; kept tokens keep their positions, as in its repository.
Differs: `equal="flops"` reads the budget as a share of the visual tokens' work in all blocks,
rho = (k + (L - k) (1 - R)) / L, so that a chart compares equal work; "tokens" is the share kept after block k.
Shapes: B scenes, N visual tokens, T prompt tokens, S slots, L blocks, d width.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.budgets import BudgetTooSmall, resolve
from frugal.core.papers import Paper
from frugal.models.mini_vlm import VisualTokens
from frugal.token_dropping.keeping import Dropper


@dataclass(frozen=True)
class FastV(Dropper):
    """Drops visual tokens after block `after`, by the attention of the prompt's last token.

    equal: what the budget counts, "flops" (mean share over all blocks) or "tokens" (share kept after the cut).
    """
    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "after block 2, the tokens the question attends to; budget in equal FLOPs"
    paper: ClassVar[Paper] = Paper.other(
        arxiv="2403.06764", where="section 4.1", title="An Image is Worth 1/2 Tokens After "
        "Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models")
    kind: ClassVar[str] = "inside"
    after: int = 2
    equal: str = "flops"

    def __post_init__(self):
        if self.after < 1:
            raise ValueError(
                f"after {self.after} is out of range: attention is read in block after - 1, so give at least 1")
        if self.equal not in ("flops", "tokens"):
            raise ValueError(f"equal {self.equal!r} is unknown: a budget counts 'flops' or 'tokens'")

    def num_left(self, budget: float | int, total: int, num_layers: int) -> int:
        """Visual tokens that later blocks still see. Raises BudgetTooSmall where the first blocks alone cost more."""
        if self.after >= num_layers:
            raise ValueError(
                f"after {self.after} leaves no later block: the decoder has {num_layers}, so give 1 to {num_layers - 1}"
            )
        count = resolve(budget, total)
        if self.equal == "tokens":
            return count
        left = round((count * num_layers - self.after * total) / (num_layers - self.after))
        if left < 1:
            least = self.after / num_layers
            raise BudgetTooSmall(
                f"budget {budget} is too small: the {self.after} blocks before the cut already cost {least:.0%} "
                f"of the visual tokens' work; give more than {least:.3g}, or cut after fewer blocks")
        return left

    def prefill(self, vlm, tokens: VisualTokens, prompt_ids: Int[Tensor, "b t"], budget: float | int):
        """Visual tokens and prompt in one pass with the cut in between: (cache, logits of the prompt's last token (B, V)).

        Later blocks' caches hold fewer slots; positions are those of the whole prompt.
        """
        batch, total, _ = tokens.embeds.shape
        lm, cut = vlm.lm, self.after
        left = self.num_left(budget, total, lm.config.num_layers)
        watch = _LastRow(cut - 1)
        cache = lm.new_cache(batch, observer=watch)
        x = torch.cat([tokens.embeds, lm.weights["embed"][prompt_ids]], 1)
        length = x.shape[1]
        first = lm.run(None, cache, embeds=x, layers=list(range(cut)), hidden=True, logits=False).hidden[-1]
        index = kept_places(watch.attention, total, left)                               # (B, left + T)
        x = first.gather(1, index[..., None].expand(-1, -1, first.shape[2])).contiguous()
        cache.observer = None
        out = lm.run(None, cache, embeds=x, positions=index, layers=list(range(cut, lm.config.num_layers)),
                     last_only=True)
        cache.num_seen = np.full(batch, length, np.int64) # two runs over one prompt counted its tokens twice
        return cache, out.logits[:, -1]


def kept_places(attention: Float[Tensor, "b s"], total: int, left: int) -> Int[Tensor, "b kept"]:
    """Places of the `left` visual tokens with most attention and of all that follows them, ascending."""
    score = attention.clone()
    score[:, total:] = torch.inf                                       # the prompt stays
    kept = score.argsort(dim=-1, descending=True, stable=True)[:, :left + score.shape[1] - total]
    return kept.sort(dim=-1).values


class _LastRow:
    """Watches one block of a cache: attention of the newest token to every slot, mean over heads, (B, S)."""

    def __init__(self, layer: int):
        self.layer, self.attention = layer, None

    def rows(self, num_new: int) -> int:
        return 1

    def observe(self, cache, layer: int, attn: Float[Tensor, "b h t s"], num_new: int) -> None:
        if layer == self.layer:
            self.attention = attn[:, :, -1].mean(1)
