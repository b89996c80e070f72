"""The decoder against transformers: same weights, same tokens, same logits."""
import inspect

import pytest
import torch

from frugal.core.fetch import fetch
from frugal.core.gguf_file import _halves
from frugal.core.kvcache import KVCache
from frugal.core.layout import split_weights
from frugal.core.lm import LM
from frugal.core.safetensors_folder import name_in_folder
from frugal.core.transformers_peer import to_transformers

transformers = pytest.importorskip("transformers")
NUM_TOKENS = 2_048


@pytest.fixture(scope="module")
def tokens(smollm2):
    """Real text, as ids (1, 2048)."""
    ids = smollm2.tokenizer.encode("\n".join(map(inspect.getsource, (inspect, KVCache))))
    return torch.tensor(ids[:NUM_TOKENS])[None]


@pytest.fixture(scope="module")
def expected(smollm2, tokens):
    """transformers' logits, computed once."""
    with torch.no_grad():
        return to_transformers(smollm2)(tokens).logits


@pytest.mark.model
@pytest.mark.peers
def test_logits_agree_over_2048_tokens(smollm2, tokens, expected):
    assert tokens.shape == (1, NUM_TOKENS)
    gap = (smollm2(tokens) - expected).abs().max().item()
    assert gap <= 1e-4, gap
    assert (expected.argmax(-1)[0, :-1] == tokens[0, 1:]).float().mean() > 0.3        # it does read the text


@pytest.mark.model
@pytest.mark.peers
def test_cached_chunks_and_single_tokens_agree_as_well(smollm2, tokens, expected):
    cache, at = smollm2.new_cache(), 0
    for size in (300, 150, 64, 20, 8, 1, 1, 1, 1):
        gap = (smollm2(tokens[:, at:at + size], cache) - expected[:, at:at + size]).abs().max().item()
        assert gap <= 1e-4, (at, size, gap)
        at += size


@pytest.mark.model
@pytest.mark.peers
def test_rows_left_in_the_files_order_would_be_noticed(smollm2, tokens, expected):
    """The planted mistake: q and k as llama.cpp stores them, not in rotate-half order."""
    c = smollm2.config
    weights, width = dict(smollm2.weights), c.num_kv_heads * c.head_dim
    qkv = weights["layers.0.qkv"]
    q, k, v = qkv.split([c.num_heads * c.head_dim, width, width])
    weights["layers.0.qkv"] = torch.cat([_halves(q, c.num_heads), _halves(k, c.num_kv_heads), v])
    wrong = LM(c, weights)(tokens[:, :64])
    assert (wrong - expected[:, :64]).abs().max() > 1e-1


@pytest.mark.model
@pytest.mark.peers
@pytest.mark.slow
def test_transformers_reads_the_same_weights_from_the_file(smollm2):
    """transformers' own GGUF reader, an independent undoing of the row order."""
    path = fetch("smollm2-135m", progress=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).state_dict()
    for part, weight in split_weights(smollm2.config, smollm2.weights):
        assert torch.equal(weight, theirs[name_in_folder(part)].float()), part
