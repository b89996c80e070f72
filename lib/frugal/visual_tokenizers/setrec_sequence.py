"""What SETRec is compared with: items spelled as sequences of codes and found by beam search, and one learned token an item.

Sequence ids: three residual-quantized codes of the text embedding and a fourth that tells items apart that share them. A
decoder predicts code after code; beam search keeps the likeliest beginnings and follows a trie, so that every result is a
real item. A KV cache keeps what the beams have read: one pass over the history, then one step a level.

Source: arXiv 2305.05065 (TIGER), sections 3.1-3.2; arXiv 1808.09781 (SASRec), section III, for the single token.
Differs: the residual codebooks come from k-means on the warm items instead of a trained RQ-VAE. Decoder and widths are
SETRec's, so that only the identifier differs.
Shapes: B histories, T items, L = 4 levels, M items of the catalogue, w width.
"""
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from frugal.core.papers import Paper, paper
from frugal.models import load_weights
from frugal.models.quantizers import ResidualVQ, check_codes
from frugal.models.trunk import Trunk
from frugal.visual_tokenizers.setrec import MAX_ITEMS, SetShape, newest

LEVELS, CODEBOOK = 4, 64
SHAPE = SetShape()


def item_codes(text: Float[Tensor, "m d"], cold: Bool[Tensor, "m"], seed: int = 2502) -> Int[Tensor, "m 4"]:
    """Three residual codes of each item's text embedding, learned from the warm items, and its number among those that
    share them: no two items have the same four."""
    torch.manual_seed(seed)
    quantizer = ResidualVQ(LEVELS - 1, CODEBOOK, text.shape[1], dropout=0.0)
    quantizer.train()
    for _ in range(50):
        quantizer(text[~cold])
    codes = quantizer.eval()(text).codes
    shared = [tuple(row) for row in codes.tolist()]
    number = torch.tensor([shared[:place].count(key) for place, key in enumerate(shared)])
    if int(number.max()) >= CODEBOOK:
        raise ValueError(f"{int(number.max()) + 1} items share three codes; the fourth tells only {CODEBOOK} apart: take larger codebooks")
    return torch.cat([codes, number[:, None]], 1)


class Trie:
    """Which codes may follow a beginning, and the item at the end. codes: (M, L), all different; raises ValueError for two
    that are equal. allowed: (M,) only these items.

    next: a level's table (nodes, vocab) of children, -1 where none; the nodes of a level are numbered from 0, the root is 0.
    """

    def __init__(self, codes: Int[Tensor, "m l"], allowed: Bool[Tensor, "m"] | None = None, vocab: int = CODEBOOK):
        numbers = torch.arange(len(codes))
        if allowed is not None:
            codes, numbers = codes[allowed], numbers[allowed]
        if len(codes.unique(dim=0)) < len(codes):
            raise ValueError("two items have the same codes, so a code sequence does not name one item; add a level that tells them apart")
        self.vocab, node = vocab, torch.zeros(len(codes), dtype=torch.long)
        self.next: list[Tensor] = []
        for level in range(codes.shape[1]):
            pair = node * vocab + codes[:, level]
            known, child = pair.unique(return_inverse=True)
            table = torch.full((int(node.max()) + 1, vocab), -1)
            table.view(-1)[known] = torch.arange(len(known))
            self.next.append(table)
            node = child
        self.item = torch.empty(len(codes), dtype=torch.long)
        self.item[node] = numbers                                      # leaf -> item

    def children(self, level: int, node: Int[Tensor, "b k"], barred: Int[Tensor, "b t"]) -> Int[Tensor, "b k c"]:
        """Next nodes of each beam (node -1: a dead beam), -1 where no item begins like this. barred: items that may not come."""
        child = torch.where(node[..., None] >= 0, self.next[level][node.clamp(min=0)], -1)
        if level + 1 == len(self.next):
            item = self.item[child.clamp(min=0)]
            child = torch.where((item[..., None] == barred[:, None, None]).any(-1), -1, child)
        return child


@dataclass(frozen=True)
class Found:
    """items: (B, k) best first, -1 where the beam held fewer; log_probs: (B, k) of their code sequences."""
    items: Int[Tensor, "b k"]
    log_probs: Float[Tensor, "b k"]


class SequenceIds(nn.Module):
    """A decoder over code sequences: start mark, then four codes an item. `recommend` is the beam search."""
    paper: ClassVar[Paper] = paper("setrec")
    label: ClassVar[str] = "sequence ids, beam search"
    num_tokens = LEVELS

    def __init__(self, codes: Int[Tensor, "m 4"], shape: SetShape = SHAPE):
        super().__init__()
        check_codes(codes, CODEBOOK)
        self.register_buffer("codes", codes)
        self.num_items, self.levels = codes.shape
        self.embed = nn.Embedding(self.levels * CODEBOOK, shape.width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.start = nn.Parameter(0.1 * torch.randn(1, shape.width))
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_ITEMS + 1, shape.width))
        self.trunk = Trunk(shape.width, shape.num_blocks, shape.num_heads, shape.mlp)
        self.heads = nn.Linear(shape.width, self.levels * CODEBOOK)
        self._trie: Trie | None = None

    @property
    def trie(self) -> Trie:
        if self._trie is None:
            self._trie = Trie(self.codes)
        return self._trie

    def embedded(self, codes: Int[Tensor, "b s"], first: int = 0) -> Float[Tensor, "b s w"]:
        """Vectors of codes that stand at places first, first + 1, ... of the flat sequence: level and item position added."""
        place = torch.arange(first, first + codes.shape[1])
        return self.embed(codes + place % self.levels * CODEBOOK) + self.positions[place // self.levels]

    def log_probs(self, states: Float[Tensor, "*b w"], level: int) -> Float[Tensor, "*b k"]:
        rows = slice(level * CODEBOOK, (level + 1) * CODEBOOK)
        return F.linear(states, self.heads.weight[rows], self.heads.bias[rows]).float().log_softmax(-1)

    def loss(self, items: Int[Tensor, "b l"], warm: Int[Tensor, "k"] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of every next code of the sessions (-1 after the end), all places at once."""
        codes, known = self.codes[items.clamp(min=0)].flatten(1), (items >= 0).repeat_interleave(self.levels, 1)
        x = torch.cat([self.start.expand(len(items), 1, -1), self.embedded(codes[:, :-1])], 1)
        states = self.trunk(x, causal=True).unflatten(1, (-1, self.levels))
        logits = self.heads(states).unflatten(-1, (self.levels, CODEBOOK)).float()
        logits = torch.stack([logits[:, :, j, j] for j in range(self.levels)], 2)                 # (B, T, L, codes)
        each = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view(codes.shape)
        value = (each * known)[:, self.levels:].sum() / known[:, self.levels:].sum() * self.levels
        return value, {"per_item": value}

    @torch.no_grad()
    def recommend(self, history: Int[Tensor, "b t"], beam: int = 20, count: int = 10, allowed: Bool[Tensor, "m"] | None = None) -> Found:
        """The `count` likeliest items that beam search finds, without those of the history. allowed: only these items.

        One pass over the history, then a step of B * beam sequences a further level. Raises ValueError for an empty
        history, unknown items or a beam below 1.
        """
        if beam < 1:
            raise ValueError(f"beam must be at least 1, got {beam}")
        read, trie = newest(history, self.num_items), self.trie if allowed is None else Trie(self.codes, allowed)
        batch, cache = len(read), self.trunk.new_cache(len(read), reserve=self.levels * MAX_ITEMS + 1)
        x = torch.cat([self.start.expand(batch, 1, -1), self.embedded(self.codes[read].flatten(1))], 1)
        states = self.trunk(x, cache=cache)[:, -1:]                                               # (B, beams, w)
        node, total = torch.zeros(batch, 1, dtype=torch.long), torch.zeros(batch, 1)
        for level in range(self.levels):
            child = trie.children(level, node, history)
            grown = (total[..., None] + self.log_probs(states, level)).masked_fill(child < 0, float("-inf")).flatten(1)
            total, place = grown.topk(min(beam, grown.shape[1]), dim=1)
            node = child.flatten(1).gather(1, place)
            if level + 1 < self.levels:
                rows = torch.arange(batch)[:, None] * states.shape[1] + place // CODEBOOK
                cache = cache.select(rows.flatten().tolist())
                step = self.embedded((place % CODEBOOK).view(-1, 1), self.levels * read.shape[1] + level)
                states = self.trunk(step, cache=cache).view(batch, -1, x.shape[-1])
        items = torch.where(node >= 0, trie.item[node.clamp(min=0)], -1)
        fill = max(0, count - items.shape[1])
        return Found(F.pad(items, (0, fill), value=-1)[:, :count], F.pad(total, (0, fill), value=float("-inf"))[:, :count])


class SingleIds(nn.Module):
    """One learned token an item, matched with the state after the history by a dot product. Cold items keep their random start."""
    paper: ClassVar[Paper] = paper("setrec")
    label: ClassVar[str] = "one learned id token"
    num_tokens = 1

    def __init__(self, num_items: int, shape: SetShape = SHAPE):
        super().__init__()
        self.num_items = num_items
        self.table = nn.Embedding(num_items, shape.width)
        nn.init.normal_(self.table.weight, std=0.1)
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_ITEMS + 1, shape.width))
        self.trunk = Trunk(shape.width, shape.num_blocks, shape.num_heads, shape.mlp)

    def states(self, items: Int[Tensor, "b t"]) -> Float[Tensor, "b t w"]:
        return self.trunk(self.table(items) + self.positions[:items.shape[1]], causal=True)

    def loss(self, items: Int[Tensor, "b l"], warm: Int[Tensor, "k"]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the next item over the warm ones, at every place."""
        logits = (self.states(items[:, :-1].clamp(min=0)) @ self.table.weight[warm].T).float()
        place = torch.full((self.num_items,), -1)
        place[warm] = torch.arange(len(warm))
        wanted = torch.where(items[:, 1:] >= 0, place[items[:, 1:].clamp(min=0)], -1)
        value = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1)
        return value, {"per_item": value}

    @torch.no_grad()
    def scores(self, history: Int[Tensor, "b t"]) -> Float[Tensor, "b m"]:
        """Scores of all items after each history. Raises ValueError for an empty history or unknown items."""
        return self.states(newest(history, self.num_items))[:, -1] @ self.table.weight.T


@lru_cache(maxsize=1)
def load_sequence_ids() -> SequenceIds:
    """The trained decoder over code sequences, with the codes of all emoji."""
    state, _ = load_weights("setrec_tiger")
    model = SequenceIds(state["codes"])
    model.load_state_dict(state)
    return model.eval()
