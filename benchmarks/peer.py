"""Our policies beside kvpress's at equal kept tokens: what compressing takes, and the loss on the text that follows.

Both sides compress a context once during prefill, then read the continuation at its true positions. kvpress runs in
transformers' Llama with the same weights; ObservedAttention needs its eager attention. Its nearest policy here is
H2O without recent window and with the score divided by the number of rows that could see a slot.
"""
import logging

import pandas as pd
import torch
import torch.nn.functional as F
from common import peer_model, smollm2, tokens

from frugal.core import measure
from frugal.core.generation import compressed_cache
from frugal.kv_eviction.baselines import TOVA, HeavyHitter, Knorm, SnapKV, StreamingLLM

CONTEXT, CONTINUATION, KEPT, DOCUMENTS = 1024, 128, 256, 2


def pairs() -> dict:
    """Name -> (our policy, kvpress's press, the attention it runs under)."""
    from kvpress import KnormPress, ObservedAttentionPress, SnapKVPress, StreamingLLMPress, TOVAPress
    ratio = 1 - KEPT / CONTEXT
    return {"knorm": (Knorm(), KnormPress(ratio), "sdpa"),
            "streaming_llm": (StreamingLLM(), StreamingLLMPress(ratio, n_sink=4), "sdpa"),
            "snapkv": (SnapKV(), SnapKVPress(ratio, window_size=16, kernel_size=5), "sdpa"),
            "tova": (TOVA(), TOVAPress(ratio), "sdpa"),
            "observed attention": (HeavyHitter(recent=0.0, normalize="count"), ObservedAttentionPress(ratio), "eager")}


def document(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Context (1, 1024) and continuation (1, 128) of one stretch of text."""
    ids = tokens(CONTEXT + CONTINUATION, index * (CONTEXT + CONTINUATION))
    return ids[:, :CONTEXT], ids[:, CONTEXT:]


def our_cache(policy, context: torch.Tensor):
    cache, logits, _ = compressed_cache(smollm2(), context[0].tolist(), policy, KEPT, room=CONTINUATION)
    return cache, logits[None, None]


@torch.no_grad()
def their_cache(press, attention: str, context: torch.Tensor):
    from transformers import DynamicCache
    model, cache = peer_model(attention), DynamicCache()
    with press(model):
        logits = model(context, past_key_values=cache, logits_to_keep=1).logits
    return cache, logits


def loss(first: torch.Tensor, rest: torch.Tensor, continuation: torch.Tensor) -> float:
    """Mean negative log-likelihood, nats a token."""
    logits = torch.cat([first, rest[:, :-1]], 1)[0]
    return float(F.cross_entropy(logits.float(), continuation[0]))


@torch.no_grad()
def quality(policy, press, attention: str, index: int) -> tuple[float, float, int, int]:
    """(our loss, kvpress's loss, tokens we kept, tokens kvpress kept) of one document."""
    context, continuation = document(index)
    cache, first = our_cache(policy, context)
    kept = int(cache.num_held(0)[0])
    ours = loss(first, smollm2()(continuation, cache), continuation)
    cache, first = their_cache(press, attention, context)
    their_kept = cache.get_seq_length()
    positions = torch.arange(CONTEXT, CONTEXT + CONTINUATION)[None]
    rest = peer_model(attention)(continuation, past_key_values=cache, position_ids=positions).logits
    return ours, loss(first, rest, continuation), kept, their_kept


def run(quick: bool = False) -> dict:
    logging.getLogger("kvpress").setLevel(logging.ERROR)
    rows = []
    for name, (policy, press, attention) in pairs().items():
        found = [quality(policy, press, attention, index) for index in range(1 if quick else DOCUMENTS)]
        ours, theirs, kept, their_kept = zip(*found, strict=True)
        context, _ = document(0)
        times = measure.compare({"kvpress": lambda p=press, a=attention: their_cache(p, a, context),
                                 "frugal": lambda p=policy: our_cache(p, context)}, repeats=1 if quick else 3, warmup=0)
        rows.append({"policy": name, "kept_tok": kept[0], "kvpress_kept_tok": their_kept[0],
                     "frugal_nll": sum(ours) / len(ours), "kvpress_nll": sum(theirs) / len(theirs),
                     "frugal_s": times.median_s[1], "kvpress_s": times.median_s[0], "speedup": times.speedup[1]})
    return {"context_tok": CONTEXT, "continuation_tok": CONTINUATION, "documents": len(found), "rows": rows}


def markdown(result: dict) -> str:
    lines = [f"{result['documents']} documents of {result['context_tok']} tokens compressed once, loss on the next "
             f"{result['continuation_tok']}; time is prefill and compression.", "",
             "| policy | kept | loss, kvpress | loss, frugal | kvpress, s | frugal, s | ratio |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in pd.DataFrame(result["rows"]).itertuples():
        lines.append(f"| {row.policy} | {row.kept_tok} | {row.kvpress_nll:.4f} | {row.frugal_nll:.4f} | "
                     f"{row.kvpress_s:.2f} | {row.frugal_s:.2f} | {row.speedup:.2f}x |")
    return "\n".join(lines)
