"""SETRec: an item is a set of continuous tokens, and a recommender writes all tokens of the next item at once.

One token says who picks the item with what (collaborative filtering, CF), the others what its name means. The tokens of an
item do not see each other and share one position, so their order says nothing; learned queries at the end each answer for
one kind of token. Every item is then scored by matching its tokens with the answers: one forward pass, no beam search.

Source: arXiv 2502.10833, sections 3.1-3.3; the repository Linxyhaha/SETRec for mask, widths and the choice of beta.
Differs: CF embeddings are singular vectors of co-picking instead of a trained SASRec's; text embeddings are SmolLM2's,
whitened and cut to 64 numbers, so the auto-encoder's layers are 64-128-96-(n_sem * width). The decoder is small and trained
from scratch; queries share one position (consecutive ones in the repository). Cold items are left out of the training
softmax and of the reconstruction. beta is chosen on validation users (the repository takes the best on the test users).
Training reads several prefixes of a session in one pass, which computes the same as one pass a prefix.
Shapes: B histories, T items, N = 1 + n_sem tokens an item, M items of the catalogue, w width.
"""
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from frugal.core.masks import set_attention_mask
from frugal.core.papers import Paper, paper
from frugal.models import load_weights
from frugal.models.trunk import Trunk

MAX_ITEMS = 12                           # of a history that are read: the newest


@dataclass(frozen=True)
class SetShape:
    """Sizes. n_sem: semantic tokens an item. full_attention: tokens of one item see each other (a variant the paper
    compares with). dims: of the CF and the text embedding."""
    n_sem: int = 4
    width: int = 96
    num_blocks: int = 3
    num_heads: int = 4
    mlp: int = 192
    cf_dim: int = 64
    text_dim: int = 64
    full_attention: bool = False

    @property
    def num_tokens(self) -> int:
        return 1 + self.n_sem


class SetIdentifier(nn.Module):
    """Items to sets of tokens: a linear map of the CF embedding, and an auto-encoder's code of the text embedding cut into
    n_sem vectors. Order within a set carries no meaning beyond "CF first"."""

    def __init__(self, shape: SetShape):
        super().__init__()
        self.shape, out = shape, max(1, shape.n_sem) * shape.width
        self.cf = nn.Linear(shape.cf_dim, shape.width)
        nn.init.normal_(self.cf.weight, std=0.02)                      # first scores near 0, so that the softmax starts flat
        self.encoder = nn.Sequential(nn.Linear(shape.text_dim, 128), nn.GELU(), nn.Linear(128, 96), nn.GELU(), nn.Linear(96, out))
        self.decoder = nn.Sequential(nn.Linear(out, 96), nn.GELU(), nn.Linear(96, 128), nn.GELU(), nn.Linear(128, shape.text_dim))

    def forward(self, cf: Float[Tensor, "m c"], text: Float[Tensor, "m d"]) -> tuple[Float[Tensor, "m n w"], Float[Tensor, ""]]:
        """(tokens, reconstruction loss): the mean squared error of the decoded text embedding, in units of its variance."""
        first = self.cf(cf)[:, None]
        if not self.shape.n_sem:
            return first, cf.new_zeros(())
        code = self.encoder(text)
        loss = F.mse_loss(self.decoder(code), text)
        return torch.cat([first, code.unflatten(-1, (self.shape.n_sem, -1))], 1), loss


def ground_items(answers: Float[Tensor, "b n w"], tokens: Float[Tensor, "m k w"], beta: float) -> Float[Tensor, "b m"]:
    """score(v) = (1 - beta) <h_cf, t_cf(v)> + beta * sum over the semantic queries of <h_q, t_q(v)>.

    Raises ValueError when beta is outside [0, 1], or answers and items have different numbers of tokens.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1] (0: CF alone, 1: meaning alone), got {beta}")
    if answers.shape[1] != tokens.shape[1]:
        raise ValueError(f"{answers.shape[1]} answers for items of {tokens.shape[1]} tokens; give one a token")
    weights = answers.new_full((answers.shape[1],), float(beta))
    weights[0] = 1 - beta
    return (answers * weights[:, None]).flatten(1) @ tokens.flatten(1).T


class SETRec(nn.Module):
    """The recommender: instruction, the history's item sets, response mark, N queries, in one forward pass.

    cf, text: (M, ...) frozen embeddings of the catalogue; buffers that are not saved with the weights.
    """
    paper: ClassVar[Paper] = paper("setrec")
    label: ClassVar[str] = "SETRec"

    def __init__(self, cf: Float[Tensor, "m c"], text: Float[Tensor, "m d"], shape: SetShape = SetShape()):
        super().__init__()
        self.shape, self.num_tokens, self.num_items = shape, shape.num_tokens, len(cf)
        self.register_buffer("cf", cf, persistent=False)
        self.register_buffer("text", text, persistent=False)
        self.identifier = SetIdentifier(shape)
        self.marks = nn.Parameter(0.1 * torch.randn(2, shape.width))                    # instruction, response
        self.queries = nn.Parameter(0.1 * torch.randn(shape.num_tokens, shape.width))
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_ITEMS + 1, shape.width))
        self.trunk = Trunk(shape.width, shape.num_blocks, shape.num_heads, shape.mlp)

    def encode(self, items: Int[Tensor, "*k"]) -> Float[Tensor, "*k n w"]:
        """Token sets of items. Raises ValueError for items that are not in the catalogue."""
        check_items(items, self.num_items)
        flat = items.flatten()
        return self.identifier(self.cf[flat], self.text[flat])[0].unflatten(0, items.shape)

    def answers(self, tokens: Float[Tensor, "b t n w"]) -> Float[Tensor, "b n w"]:
        """States at the N queries after a history of T token sets: one forward pass over 2 + (T + 1) * N tokens."""
        return self.trunk(self.sequence(tokens), self.mask(tokens.shape[1]))[:, -self.num_tokens:]

    def sequence(self, tokens: Float[Tensor, "b t n w"]) -> Float[Tensor, "b s w"]:
        """What the trunk reads. All tokens of one item share its position; the queries share the one after the last item."""
        batch, count = tokens.shape[:2]
        if not 1 <= count <= MAX_ITEMS:
            raise ValueError(f"a history has 1 to {MAX_ITEMS} items, got {count}; cut it to its newest ones with `newest`")
        placed = (tokens + self.positions[:count, None]).flatten(1, 2)
        asked = torch.cat([self.marks[1:], self.queries]) + self.positions[count]
        return torch.cat([self.marks[:1].expand(batch, -1, -1), placed, asked.expand(batch, -1, -1)], 1)

    def mask(self, num_items: int) -> Bool[Tensor, "s s"]:
        return set_attention_mask(1, num_items, self.num_tokens, 1, inside=self.shape.full_attention)

    @torch.no_grad()
    def catalogue_tokens(self) -> Float[Tensor, "m n w"]:
        """Token sets of all items: computed once for many histories."""
        return self.encode(torch.arange(self.num_items))

    @torch.no_grad()
    def scores(self, history: Int[Tensor, "b t"], beta: float = 0.5, tokens: Float[Tensor, "m n w"] | None = None
               ) -> Float[Tensor, "b m"]:
        """Scores of all items after each history, oldest item first; only its newest 12 are read.

        Raises ValueError for an empty history, unknown items or beta outside [0, 1].
        """
        history = newest(history, self.num_items)
        tokens = self.catalogue_tokens() if tokens is None else tokens
        return ground_items(self.answers(tokens[history]), tokens, beta)

    def loss(self, items: Int[Tensor, "b l"], prefixes: list[int], warm: Int[Tensor, "k"], alpha: float = 0.6
             ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy over the warm items at every query, mean over queries and prefixes, + alpha * reconstruction.

        items: (B, L) sessions, -1 after the end. prefixes: lengths p; the item at place p is what is to be found. warm:
        numbers of the items that training knows.
        """
        tokens, rebuilt = self.identifier(self.cf[warm], self.text[warm])
        place = torch.full((self.num_items,), -1)
        place[warm] = torch.arange(len(warm))
        found = torch.where(items >= 0, place[items.clamp(min=0)], -1)                           # places among the warm
        states = self.prefix_answers(tokens[found[:, :max(prefixes)].clamp(min=0)], prefixes)    # (B, P, N, w)
        logits = torch.einsum("bpnw,mnw->bpnm", states, tokens).float()
        wanted = found[:, prefixes, None].expand(-1, -1, self.num_tokens)
        each = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), ignore_index=-1, reduction="none").view(wanted.shape)
        known = (wanted >= 0).sum() / self.num_tokens
        parts = each.sum((0, 1)) / known
        return parts.mean() + alpha * rebuilt, {"cf": parts[0], "sem": parts[1:].mean() if self.shape.n_sem else parts[0],
                                                "rebuilt": rebuilt}

    def prefix_answers(self, tokens: Float[Tensor, "b t n w"], prefixes: list[int]) -> Float[Tensor, "b p n w"]:
        """States at the queries after each prefix of the histories, from one pass: a response mark and N queries a prefix."""
        batch, count = tokens.shape[:2]
        whole = self.sequence(tokens)
        head = 1 + count * self.num_tokens
        asked = torch.cat([torch.cat([self.marks[1:], self.queries]) + self.positions[p] for p in prefixes])
        joined = torch.cat([whole[:, :head], asked.expand(batch, -1, -1)], 1)
        states = self.trunk(joined, self.prefix_mask(count, prefixes))[:, head:]
        return states.unflatten(1, (len(prefixes), -1))[:, :, 1:]

    def prefix_mask(self, count: int, prefixes: list[int]) -> Bool[Tensor, "s s"]:
        """The set mask for many prefixes: every group of response and queries sees its own prefix of items and itself."""
        one, each = self.mask(count), self.num_tokens + 1
        head = one.shape[0] - each
        mask = torch.zeros(head + each * len(prefixes), head + each * len(prefixes), dtype=torch.bool)
        mask[:head, :head] = one[:head, :head]
        for number, prefix in enumerate(prefixes):
            rows = slice(head + each * number, head + each * (number + 1))
            mask[rows, :1 + prefix * self.num_tokens] = True
            mask[rows, rows] = one[head:, head:]
        return mask


def check_items(items: Int[Tensor, "*k"], num_items: int) -> None:
    """Raises ValueError for items outside 0..num_items-1."""
    if items.numel() and not (0 <= int(items.min()) and int(items.max()) < num_items):
        raise ValueError(f"items must be in 0..{num_items - 1}, got {int(items.min())}..{int(items.max())}; "
                         "emoji names become numbers with `catalogue().index(name)`")


def newest(history: Int[Tensor, "b t"], num_items: int) -> Int[Tensor, "b u"]:
    """The newest 12 items. Raises ValueError for an empty history or unknown items."""
    if history.shape[1] == 0:
        raise ValueError("the history is empty: give at least one item that was picked before")
    check_items(history, num_items)
    return history[:, -MAX_ITEMS:]


@lru_cache(maxsize=1)
def load_setrec() -> SETRec:
    """The trained recommender of all emoji, four semantic tokens an item; `beta` of its card is the one to use."""
    items, _ = load_weights("setrec_items")
    state, _ = load_weights("setrec")
    model = SETRec(items["cf"], items["text"])
    model.load_state_dict(state)
    return model.eval()
