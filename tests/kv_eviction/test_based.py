"""BASED: the three forms agree, the state is constant, wrong builds are rejected."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.kv_eviction import based
from frugal.kv_eviction.based import Based
from frugal.kv_eviction.based_layers import build, build_mixer
from frugal.models.based_lm import decode_all, state_bytes

SPECS = ["attention", "conv", "taylor_6", "elu_12", "relu_12", "window_7", "gated_9"]


def random_qkv(tokens=50, f=6, d=10, batch=2, heads=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, tokens, size, generator=generator, dtype=dtype) for size in (f, f, d)]


def brute_force(q, k, v, weight):
    """One query after the other, one key after the other, one sequence: sum of weight(q, k) v over sum of weight."""
    out = torch.zeros_like(v)
    for b, h, i in [(b, h, i) for b in range(q.shape[0]) for h in range(q.shape[1]) for i in range(q.shape[2])]:
        w = torch.stack([weight(q[b, h, i], k[b, h, j]) for j in range(i + 1)])
        out[b, h, i] = (w[:, None] * v[b, h, : i + 1]).sum(0) / w.sum()
    return out


# --- feature map ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [1, 2, 5, 16])
def test_the_taylor_map_is_the_taylor_series_of_exp(f):
    q, k = torch.randn(2, 200, f, generator=torch.Generator().manual_seed(f), dtype=torch.float64)
    z = (q * k).sum(-1) / math.sqrt(f)
    product = (based.taylor_features(q) * based.taylor_features(k)).sum(-1)
    torch.testing.assert_close(product, 1 + z + z**2 / 2, rtol=0, atol=1e-9)
    torch.testing.assert_close(based.similarity(q[:, None], k[:, None]).flatten(), product, rtol=0, atol=1e-9)
    assert product.min() >= 0.5 and based.taylor_features(q).shape[-1] == 1 + f + f**2


def test_the_taylor_map_meets_the_tolerance_of_the_notes_in_fp32():
    q, k = torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(1))
    z = (q * k).sum(-1) / 4
    torch.testing.assert_close(
        (based.taylor_features(q) * based.taylor_features(k)).sum(-1), 1 + z + z**2 / 2, rtol=1e-6, atol=2e-6
    )


def test_worked_example():
    """f = 4, q.k = 2, so z = 1 and the weight is 2.5; softmax would weigh it e."""
    q, k = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0]])
    assert torch.isclose(based.taylor_features(q) @ based.taylor_features(k), torch.tensor(2.5))


# --- forms that agree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["taylor", "elu", "relu"])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_parallel_chunked_and_recurrent_agree(features, dtype, atol):
    q, k, v = random_qkv(dtype=dtype, tokens=70)
    if features == "relu":
        q, k = q.abs(), k.abs()  # a row without any positive feature has no defined average
    expected = based.parallel(q, k, v, features)
    torch.testing.assert_close(based.recurrent(q, k, v, features), expected, rtol=0, atol=atol)
    for chunk in (1, 7, 64, 70, 200):
        torch.testing.assert_close(based.chunked(q, k, v, features, chunk), expected, rtol=0, atol=atol)


def test_parallel_equals_two_loops():
    q, k, v = random_qkv(tokens=9)

    def weight(a, b):
        z = a @ b / math.sqrt(len(a))
        return 1 + z + z**2 / 2

    torch.testing.assert_close(based.parallel(q, k, v), brute_force(q, k, v, weight), rtol=0, atol=1e-10)


@given(tokens=st.integers(1, 40), window=st.integers(1, 50), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_window_equals_masked_softmax_attention(tokens, window, seed):
    q, k, v = random_qkv(tokens, seed=seed)
    age = torch.arange(tokens)[:, None] - torch.arange(tokens)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=(age >= 0) & (age < window))
    torch.testing.assert_close(based.sliding_window_attention(q, k, v, window), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", [30, 31, 4096])
def test_a_window_over_everything_is_full_attention(window):
    q, k, v = random_qkv(30)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(based.sliding_window_attention(q, k, v, window), expected, rtol=0, atol=1e-12)


def test_a_window_of_one_copies_the_value():
    q, k, v = random_qkv(12)
    torch.testing.assert_close(based.sliding_window_attention(q, k, v, 1), v)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("heads", [1, 2])
def test_every_mixer_decodes_what_it_computes_in_parallel(spec, heads):
    mixer = build_mixer(spec, 16, heads).double()
    x = torch.randn(3, 150, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        expected = mixer(x)
        state = mixer.new_state(3)
        stepped = torch.stack([mixer.step(x[:, t], state) for t in range(150)], dim=1)
        torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-9)
        for cut in (1, 2, 20, 149):  # read a prompt, then go on one by one
            y, state = mixer.prefill(x[:, :cut])
            torch.testing.assert_close(y, expected[:, :cut], rtol=0, atol=1e-9)
            for t in range(cut, min(cut + 20, 150)):
                torch.testing.assert_close(mixer.step(x[:, t], state), expected[:, t], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["taylor_4+window_8", "attention", "gated_8"])
def test_the_model_decodes_what_it_computes_in_parallel(name):
    model = build(name, vocab_size=40, hidden_size=16, seed=3)
    tokens = torch.randint(40, (2, 60), generator=torch.Generator().manual_seed(4))
    logits, _ = decode_all(model, tokens)
    torch.testing.assert_close(logits, model(tokens).detach(), rtol=0, atol=1e-4)
    last, state = model.prefill(tokens[:, :41])
    torch.testing.assert_close(last, logits[:, 40], rtol=0, atol=1e-4)
    torch.testing.assert_close(model.step(tokens[:, 41], state), logits[:, 41], rtol=0, atol=1e-4)


# --- the state -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, kind, sizes",
    [
        ("taylor_16", "taylor", {"feature_dim": 16}),
        ("elu_12", "linear", {"feature_dim": 12}),
        ("window_20", "window", {"window": 20}),
        ("attention", "attention", {"tokens": 64}),
    ],
)
def test_real_bytes_are_the_formula(spec, kind, sizes):
    mixer, x = build_mixer(spec, 64), torch.zeros(2, 64)
    state = mixer.new_state(2)
    for _ in range(64):
        mixer.step(x, state)
    assert state_bytes([state]) == 2 * 4 * based.state_floats(kind, hidden_size=64, **sizes)


@pytest.mark.parametrize("spec", [s for s in SPECS if s != "attention"])
def test_the_state_does_not_grow(spec):
    mixer, x = build_mixer(spec, 16), torch.zeros(2, 16)
    state = mixer.new_state(2)
    sizes = set()
    for _ in range(600):
        mixer.step(x, state)
        sizes.add(state_bytes([state]))
    assert len(sizes) == 1


def test_the_cache_of_full_attention_does_grow():
    _, short = build_mixer("attention", 16).prefill(torch.zeros(1, 100, 16))
    _, long = build_mixer("attention", 16).prefill(torch.zeros(1, 900, 16))
    assert state_bytes([long]) == 8 * state_bytes([short])


# --- wrong builds are rejected -------------------------------------------------------------------------------------


def no_division(q, k, v):
    return based.similarity(q, k).tril() @ v


def no_root_f(q, k, v):
    z = q @ k.mT
    w = (1 + z + z * z / 2).tril()
    return w @ v / w.sum(-1, keepdim=True)


def triangle_counted_once(q, k, v):
    f = q.shape[-1]
    rows, cols = torch.triu_indices(f, f)

    def phi(x):
        return torch.cat([torch.ones_like(x[..., :1]), x / f**0.25, (x[..., rows] * x[..., cols]) / (2 * f) ** 0.5], -1)

    w = (phi(q) @ phi(k).mT).tril()
    return w @ v / w.sum(-1, keepdim=True)


def sees_the_future(q, k, v):
    w = based.similarity(q, k)
    return w @ v / w.sum(-1, keepdim=True)


@pytest.mark.parametrize("wrong", [no_division, no_root_f, triangle_counted_once, sees_the_future])
def test_wrong_linear_attentions_differ_from_the_recurrent_form(wrong):
    q, k, v = random_qkv()
    assert (wrong(q, k, v) - based.recurrent(q, k, v)).abs().max() > 1e-2


def test_without_the_convolution_the_second_layer_cannot_see_which_value_follows_which_key():
    """Swap the values of two pairs: without the convolution the mixer sees only a set, so nothing changes."""
    pairs, swapped = torch.tensor([[3, 21, 5, 30, 9, 3]]), torch.tensor([[3, 30, 5, 21, 9, 3]])
    for conv, sees in ((True, True), (False, False)):
        model = build("taylor_4", vocab_size=40, hidden_size=16, conv=conv, seed=5).double()
        difference = (model(pairs)[0, -1] - model(swapped)[0, -1]).abs().max().item()
        assert (difference > 1e-9) == sees


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [0, -4, 65, 2.5])
def test_bad_feature_dims(f):
    with pytest.raises((ValueError, TypeError), match=str(f)):
        Based(feature_dim=f)


def test_bad_window_of_the_method():
    with pytest.raises(ValueError, match="-3"):
        Based(window=-3)


@pytest.mark.parametrize(
    "spec", ["taylor", "taylor_0", "taylor_-2", "taylor_x", "window_", "lstm_3", "", "taylor_5000"]
)
def test_bad_mixers(spec):
    with pytest.raises(ValueError, match="mixer|needs"):
        build_mixer(spec, 64)


def test_bad_numbers():
    q, k, v = random_qkv(5)
    with pytest.raises(ValueError, match="window .* 0"):
        based.sliding_window_attention(q, k, v, 0)
    with pytest.raises(ValueError, match="chunk .* 0"):
        based.chunked(q, k, v, chunk=0)
    with pytest.raises(ValueError, match="'cosine'"):
        based.parallel(q, k, v, "cosine")
    with pytest.raises(ValueError, match="num_heads .* 3"):
        build_mixer("attention", 64, 3)
    with pytest.raises(ValueError, match="kind"):
        based.state_floats("conv", hidden_size=4)
    model = build("taylor_2", vocab_size=10, hidden_size=8)
    with pytest.raises(ValueError, match="0 to 9"):
        model(torch.tensor([[3, 10]]))
    with pytest.raises(ValueError, match="no tokens"):
        model(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="batch .* 0"):
        model.new_state(0)
