"""What the benchmarks share: the model, real text as tokens, and transformers' Llama with the same weights."""
import inspect
import textwrap
from functools import lru_cache

import torch

import frugal.core.kvcache
from frugal import load_lm
from frugal.core.lm import LM
from frugal.core.transformers_peer import to_transformers


@lru_cache
def smollm2() -> LM:
    return load_lm("smollm2-135m", progress=False)


def tokens(count: int, skip: int = 0) -> torch.Tensor:
    """Real text, ids (1, count): source code of Python's own library. skip: where in it to begin."""
    text = "\n".join(map(inspect.getsource, (inspect, textwrap, frugal.core.kvcache)))
    ids = smollm2().tokenizer.encode(text)
    if skip + count > len(ids):
        raise ValueError(f"the text has {len(ids)} tokens, {skip + count} were asked for")
    return torch.tensor(ids[skip:skip + count])[None]


@lru_cache
def peer_model(attention: str = "sdpa"):
    """transformers' Llama with a copy of the same fp32 weights, in memory as transformers lays it out."""
    return to_transformers(smollm2(), attention)
