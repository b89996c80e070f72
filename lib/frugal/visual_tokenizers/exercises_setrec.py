"""Exercise on SETRec: the attention mask of item sets."""
import torch
from torch import Tensor

from frugal.core.masks import set_attention_mask
from frugal.explore.exercises import Exercise, wrong

__all__ = ["EXERCISES", "set_mask"]

CASES = ((1, 3, 3, 1), (2, 1, 4, 0), (0, 2, 2, 2), (1, 4, 1, 1))
DRAW = 0


def _states(mask: Tensor, num_items: int, num_tokens: int, num_instr: int, shuffle: bool) -> Tensor:
    """What two rounds of attention under this mask leave at the queries, for fixed random tokens; shuffle: the tokens of the
    first item in reverse order. All tokens of an item share a position, so the tokens alone say who is who."""
    draw = torch.Generator().manual_seed(DRAW)
    x = torch.randn(len(mask), 8, generator=draw, dtype=torch.float64)
    if shuffle:
        item = slice(num_instr, num_instr + num_tokens)
        x[item] = x[item].flip(0)
    for _ in range(2):
        scores = (x @ x.T / 8 ** 0.5).masked_fill(~mask, float("-inf"))
        x = x + scores.softmax(-1) @ x
    return x[-num_tokens:]


def _check(answer) -> None:
    for num_instr, num_items, num_tokens, num_resp in CASES:
        case = f"mask({num_instr}, {num_items}, {num_tokens}, {num_resp})"
        want = set_attention_mask(num_instr, num_items, num_tokens, num_resp)
        got = torch.as_tensor(answer(num_instr, num_items, num_tokens, num_resp))
        if got.shape != want.shape:
            wrong(f"shape {tuple(got.shape)}, expected {tuple(want.shape)}",
                  "count instruction + items * N + response + N queries: did you forget the queries?", case)
        _explain(got.bool(), want, num_instr, num_items, num_tokens, case)


def _explain(got: Tensor, want: Tensor, num_instr: int, num_items: int, num_tokens: int, case: str) -> None:
    if torch.equal(got, want):
        return
    if not got.diagonal().all():
        wrong("a token does not see itself", "the diagonal is true: a row without any true entry has no softmax", case)
    if (got & ~want & torch.ones_like(want).triu(1)).any():
        i, j = (got & ~want & torch.ones_like(want).triu(1)).nonzero()[0].tolist()
        wrong(f"token {i} sees token {j}, which comes later", "nothing sees what stands behind it, not even within an item or among queries", case)
    queries = got[-num_tokens:, -num_tokens:]
    if num_tokens > 1 and queries.sum() > num_tokens:
        wrong("a query sees another query", "each query answers as if it were alone: among queries only the diagonal is true", case)
    if num_tokens > 1 and num_items:
        before, after = (_states(got, num_items, num_tokens, num_instr, shuffle) for shuffle in (False, True))
        moved = float((before - after).abs().max())
        if moved > 1e-9:
            wrong(f"reversing the tokens of the first item moves the answers by {moved:.2g}",
                  "is the mask plainly causal within an item? There its tokens see only themselves", case)
    i, j = (got != want).nonzero()[0].tolist()
    wrong(f"token {i} {'sees' if got[i, j] else 'does not see'} token {j}",
          "everything of an earlier unit (instruction, items before, response) is visible to all that follow", case)


def _causal(num_instr: int, num_items: int, num_tokens: int, num_resp: int) -> Tensor:
    """Causal within items."""
    mask = torch.ones_like(set_attention_mask(num_instr, num_items, num_tokens, num_resp)).tril()
    mask[-num_tokens:, -num_tokens:] = torch.eye(num_tokens, dtype=torch.bool)
    return mask


def _talking(num_instr: int, num_items: int, num_tokens: int, num_resp: int) -> Tensor:
    """Later queries see earlier ones."""
    mask = set_attention_mask(num_instr, num_items, num_tokens, num_resp)
    mask[-num_tokens:, -num_tokens:] = torch.ones(num_tokens, num_tokens).tril().bool()
    return mask


def _both_ways(num_instr: int, num_items: int, num_tokens: int, num_resp: int) -> Tensor:
    """Tokens of one item see each other, both ways."""
    return set_attention_mask(num_instr, num_items, num_tokens, num_resp, inside=True)


def _blind(num_instr: int, num_items: int, num_tokens: int, num_resp: int) -> Tensor:
    """Strictly earlier units, without oneself."""
    mask = set_attention_mask(num_instr, num_items, num_tokens, num_resp)
    return mask & ~torch.eye(len(mask), dtype=torch.bool)


def _no_queries(num_instr: int, num_items: int, num_tokens: int, num_resp: int) -> Tensor:
    """Leaves the queries out."""
    return set_attention_mask(num_instr, num_items, num_tokens, num_resp)[:-num_tokens, :-num_tokens]


def _nearest(num_instr: int, num_items: int, num_tokens: int, num_resp: int) -> Tensor:
    """Tokens of an item see only the item right before."""
    mask = set_attention_mask(num_instr, num_items, num_tokens, num_resp)
    for item in range(2, num_items):
        rows = slice(num_instr + item * num_tokens, num_instr + (item + 1) * num_tokens)
        mask[rows, num_instr:num_instr + (item - 1) * num_tokens] = False
    return mask


set_mask = Exercise(
    key="set_mask", title="Sets that say nothing by their order", prompt=
    "Write SETRec's attention mask, true where the row's token sees the column's: `num_instr` instruction tokens, `num_items` items "
    "of `num_tokens` tokens, `num_resp` response tokens, `num_tokens` queries. Every token sees itself and all that stands "
    "before it, but tokens of one item do not see each other, and queries do not see each other. The check reverses the "
    "tokens of an item and wants the same answers.", stub=
    "def mask(num_instr: int, num_items: int, num_tokens: int, num_resp: int) -> torch.Tensor:\n    raise NotImplementedError  # yours",
    test=_check, hints=("Give every token the number of its unit: instruction tokens one each, an item's tokens the same, all queries the same.",
                        "unit[:, None] > unit[None, :], and the diagonal."),
    difficulty=2, minutes=10, reference=set_attention_mask,
    wrong=[(_causal, "plainly causal within an item"), (_talking, "among queries only the diagonal"), (_both_ways, "nothing sees what stands behind it"),
           (_blind, "the diagonal is true"), (_no_queries, "did you forget the queries"), (_nearest, "everything of an earlier unit")])

EXERCISES = [set_mask]
