"""The pair of R2R: a large and a small decoder over arithmetic chains, both as `frugal.core.lm.LM`.

Source: arXiv 2505.21600 (R2R): R1-Distill-Qwen-32B and 1.5B, here 1.8 M and 0.1 M parameters, about the same ratio.
Differs: trained from scratch by recipes/train_r2r.py; the small one is stopped early on purpose, so that it is right often, not always.
"""
from torch import Tensor

from frugal.core.lm import LM, LMConfig
from frugal.data.arithmetic_chains import BOS, EOS, MAX_TOKENS, VOCAB_SIZE, ChainTokenizer
from frugal.models import load_weights

_COMMON = dict(vocab_size=VOCAB_SIZE, rope_theta=10_000.0, norm_eps=1e-5, max_positions=MAX_TOKENS + 6, tie_embeddings=False)
LLM_SHAPE = _COMMON | dict(hidden_size=192, num_layers=4, num_heads=6, num_kv_heads=6, head_dim=32, intermediate_size=512)
SLM_SHAPE = _COMMON | dict(hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16, intermediate_size=176)
SHAPES = {"llm": LLM_SHAPE, "slm": SLM_SHAPE}


def make_lm(weights: dict[str, Tensor], shape: dict, name: str = "r2r") -> LM:
    """An LM over the given weights, with the tokenizer of the chains."""
    config = LMConfig(**shape, bos_id=BOS, eos_ids=(EOS,))
    return LM(config, {key: value.detach().float().contiguous() for key, value in weights.items()}, ChainTokenizer(), name=name)


def load_pair() -> tuple[LM, LM]:
    """(LLM, SLM), trained, from the package's weights. Raises WeightsError when they are missing or damaged."""
    pair = []
    for size in ("llm", "slm"):
        weights, card = load_weights(f"r2r_{size}")
        pair.append(make_lm(weights, card["shape"], f"r2r-{size}"))
    return pair[0], pair[1]
