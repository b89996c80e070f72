"""What one decoding step with a compressed cache costs, counted: FLOPs, bytes of fast memory, bytes over the link."""
from typing import NamedTuple

from frugal.core.roofline import Cost, ModelShape


class DecodeStep(NamedTuple):
    """The workload that is costed: one new token for each of `batch` sequences with `context` tokens."""
    context: int
    batch: int = 1


def mikv_cost(method, shape: ModelShape, step: DecodeStep, budget: float | int | None = None) -> Cost:
    """All weights and both tiers are read once; each retained number costs a multiply-add to decode."""
    important = method.important_count(shape, step.context, budget)
    retained = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * (step.context - important)
    cache = method.formula_bytes(shape, step.context, important)
    return _without_cache(shape, step) + step.batch * Cost(flops=_attention(shape, step.context) + 2 * retained, bytes=cache)


def shadowkv_cost(method, shape: ModelShape, step: DecodeStep, budget: float | int | None = None, hit_rate: float = 0.6,
                  bits: int = 16) -> Cost:
    """Weights, landmarks, exact tokens and selected rows are read; values that were not carried over cross the link.

    hit_rate: share of the selected chunks that were selected at the step before; the paper reports about 0.6.
    """
    size, heads, dim = bits // 8, shape.num_kv_heads, shape.head_dim
    split, outliers = method.partition(step.context)
    selected = method.num_selected(shape, step.context, size, budget) * method.chunk
    landmarks, exact = split.num_old - outliers, split.num_local + outliers * method.chunk
    rank = min(method.rank, heads * dim)
    read = heads * (landmarks * dim + 2 * exact * dim + selected * (rank + dim) + rank * dim) * size
    flops = (2 * shape.num_heads * landmarks * dim + 2 * heads * selected * rank * dim) * shape.num_layers
    missed = 1 - hit_rate if method.carry_over else 1.0
    link = 0 if method.values == "resident" else heads * selected * dim * size * missed
    cache = Cost(flops=flops + _attention(shape, exact + selected), bytes=shape.num_layers * read, link_bytes=shape.num_layers * link)
    return _without_cache(shape, step) + step.batch * cache


def _without_cache(shape: ModelShape, step: DecodeStep) -> Cost:
    return shape.decode_cost(0, step.batch)


def _attention(shape: ModelShape, tokens: int) -> int:
    return 4 * shape.num_layers * shape.num_heads * shape.head_dim * tokens
