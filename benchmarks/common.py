"""What the benchmarks share: the model, real text as tokens, and transformers' Llama with the same weights."""
import inspect
import textwrap
from functools import lru_cache

import torch

import frugal.core.kvcache
from frugal import load_lm
from frugal.core.layout import split_weights
from frugal.core.lm import LM
from frugal.core.safetensors_folder import name_in_folder


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
    import transformers
    lm = smollm2()
    c = lm.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_layers, head_dim=c.head_dim,
        num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads, intermediate_size=c.intermediate_size,
        rms_norm_eps=c.norm_eps, max_position_embeddings=c.max_positions, tie_word_embeddings=c.tie_embeddings,
        rope_parameters={"rope_theta": c.rope_theta, "rope_type": "default"}, attn_implementation=attention)
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict({name_in_folder(part): weight for part, weight in split_weights(c, lm.weights)}, strict=False)
    model.tie_weights()
    return model
