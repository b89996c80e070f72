"""What one recommendation costs: one forward pass with N queries against four steps of beam search, counted and timed.

FLOPs are counted on the run itself; times are process CPU time, both ways in turn in one process. Two backbones: the small
decoder that was trained, and SmolLM2-135M, which was not trained for this and serves as a clock: its weights do not change
what a step costs. At a paper's scale the same steps go through the roofline.
Differs: on SmolLM2 attention is causal in both ways (its decoder takes no other mask); the set mask would cost the same.
"""
from collections.abc import Callable

import pandas as pd
import torch

from frugal.core.lm import LM
from frugal.core.measure import compare, counted_flops, num_threads
from frugal.core.roofline import Cost, shape, time
from frugal.visual_tokenizers.setrec import MAX_ITEMS, SETRec, SetShape
from frugal.visual_tokenizers.setrec_sequence import LEVELS, SequenceIds

NUM_TOKENS, BEAMS = (1, 2, 3, 5, 9), (1, 5, 10, 20, 50)
HISTORY = list(range(100, 100 + MAX_ITEMS))
PAPER_SCALE, GPU = "Qwen3-8B", "H100-SXM"


def mini_ways(sequence: SequenceIds) -> dict[str, Callable]:
    """Recommenders of one history on the small decoder; every N with fresh weights, since cost does not depend on them."""
    history, items = torch.tensor([HISTORY]), sequence.num_items
    ways = {}
    for count in NUM_TOKENS:
        torch.manual_seed(0)
        model = SETRec(torch.randn(items, 64), torch.randn(items, 64), SetShape(n_sem=count - 1)).eval()
        tokens = model.catalogue_tokens()
        ways[f"setrec {count}"] = lambda model=model, tokens=tokens: model.scores(history, 0.5, tokens).topk(10)
    for beam in BEAMS:
        ways[f"beam {beam}"] = lambda beam=beam: sequence.recommend(history, beam)
    return ways


def lm_ways(lm: LM) -> dict[str, Callable]:
    """The same passes through a language model's decoder, fed with vectors of its width; heads and grounding left out."""
    width, draw = lm.config.hidden_size, torch.Generator().manual_seed(0)

    def vectors(batch: int, count: int) -> torch.Tensor:
        return torch.randn(batch, count, width, generator=draw)

    def one_pass(tokens: int) -> None:
        lm.run(None, lm.new_cache(1), embeds=vectors(1, 2 + (MAX_ITEMS + 1) * tokens), logits=False)

    def beam_search(beam: int) -> None:
        cache = lm.new_cache(1)
        lm.run(None, cache, embeds=vectors(1, 1 + MAX_ITEMS * LEVELS), logits=False)
        for _ in range(LEVELS - 1):
            cache = cache.select([0] * beam)
            lm.run(None, cache, embeds=vectors(beam, 1), logits=False)

    return {**{f"setrec {n}": lambda n=n: one_pass(n) for n in NUM_TOKENS}, **{f"beam {b}": lambda b=b: beam_search(b) for b in BEAMS}}


def cost_rows(ways: dict[str, Callable], backbone: str, repeats: int, base: str = "setrec 5") -> pd.DataFrame:
    """One row a way: counted FLOPs, CPU time (median, s) and its ratio to the base's in the same round, with the ratio of FLOPs."""
    ways = {base: ways[base]} | ways
    with num_threads(1), torch.no_grad():
        table = compare(ways, repeats)
        table["flops"] = [counted_flops(way) for way in ways.values()]
    table["backbone"], table["times_base"] = backbone, 1 / table.cpu_ratio
    table["flops_base"] = table.flops / table.flops[0]
    kind, size = zip(*(name.split() for name in table.name))
    table["kind"], table["size"] = kind, [int(n) for n in size]
    return table[["backbone", "kind", "size", "cpu_s", "times_base", "flops", "flops_base"]]


def projected_times(num_tokens: int = 5, beam: int = 20, users: int = 1, items: int = 50) -> float:
    """Time of beam search over time of one pass for an 8B decoder on an H100 (16 bits), from the larger of compute and
    traffic of each step. items: in the history, `num_tokens` tokens each for SETRec and four codes each for sequence ids."""
    model = shape(PAPER_SCALE)

    def lower_s(cost: Cost) -> float:
        return time(cost, GPU, "fp16").lower_s

    one = lower_s(model.prefill_cost(2 + (items + 1) * num_tokens, users))
    search = lower_s(model.prefill_cost(1 + items * LEVELS, users))
    search += sum(lower_s(model.decode_cost(1 + items * LEVELS + step, users * beam)) for step in range(1, LEVELS))
    return float(search / one)
