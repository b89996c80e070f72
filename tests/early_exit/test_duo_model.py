"""Duo-LM and its routes: limits, gathered against masked, counted work, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from frugal.core.measure import counted_flops
from frugal.core.papers import paper
from frugal.early_exit.duo_llm import FIXED, DuoLLM, decode_cost, fixed_pattern, forward_flops, random_patterns
from frugal.models.duo_lm import BIG, SHAPE, SKIP, SMALL, DuoConfig, DuoLM, follow, initial_weights, random_duo, swiglu

CLOSE = dict(atol=1e-4, rtol=1e-4)           # two orders of summation in fp32


@pytest.fixture(scope="module")
def duo():
    return random_duo(0)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 258, (2, 11), generator=torch.Generator().manual_seed(1))


def masked_dense(duo: DuoLM, tokens, choices):
    """The same computation without gathering: both networks run on all tokens, a mask keeps one."""
    cache, x = duo.new_cache(len(tokens)), duo.weights["embed"][tokens]
    positions = cache.next_positions(tokens.shape[1])
    cos, sin = (table[:, :, None] for table in duo.rope.tables(positions))
    for i, part in enumerate(duo.layers):
        x = x + duo._attention(i, x, cache, positions, cos, sin)
        normed = duo._norm(x, part["mlp_norm"])
        for which in (SMALL, BIG):
            x = x + swiglu(normed, *duo.networks[i][which]) * (choices[..., i, None] == which)
    return duo.unembed(x)


@pytest.mark.parametrize("which", [SMALL, BIG])
def test_one_choice_everywhere_is_a_plain_decoder(duo, tokens, which):
    plain = duo.plain(which)
    assert type(plain).__name__ == "LM" and plain.config.intermediate_size == (40 if which == BIG else 8)
    torch.testing.assert_close(duo.run(tokens, route=follow([which] * 3)).logits, plain(tokens), **CLOSE)


def test_all_big_is_the_default(duo, tokens):
    assert torch.equal(duo(tokens), duo.run(tokens, route=follow([BIG] * 3)).logits)
    assert not torch.allclose(duo(tokens), duo.run(tokens, route=follow([SMALL] * 3)).logits, atol=0.1)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), batch=st.integers(1, 3), num=st.integers(1, 12))
def test_gathered_equals_masked(seed, batch, num):
    duo, generator = random_duo(seed % 3), torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 258, (batch, num), generator=generator)
    choices = torch.randint(SKIP, BIG + 1, (batch, num, 3), generator=generator)
    out = duo.run(tokens, route=follow(choices))
    assert torch.equal(out.choices, choices)
    torch.testing.assert_close(out.logits, masked_dense(duo, tokens, choices), **CLOSE)


def test_token_by_token_equals_the_whole_text(duo, tokens):
    choices = torch.randint(SKIP, BIG + 1, (2, 11, 3), generator=torch.Generator().manual_seed(3))
    whole, cache = duo.run(tokens, route=follow(choices)).logits, duo.new_cache(2)
    for t in range(11):
        step = duo.run(tokens[:, t : t + 1], cache, route=follow(choices[:, t : t + 1])).logits
        torch.testing.assert_close(step[:, 0], whole[:, t], **CLOSE)
    assert (cache.num_held(2) == 11).all()  # a skipped network leaves the keys complete


def test_what_is_trained_is_what_runs(duo, tokens):
    choices = torch.randint(SKIP, BIG + 1, (2, 11, 3), generator=torch.Generator().manual_seed(4))
    states = duo.full_text(tokens, follow(choices))
    torch.testing.assert_close(duo.unembed(states), duo.run(tokens, route=follow(choices)).logits, **CLOSE)


def test_training_in_bf16_follows_the_same_path(duo, tokens):
    route = follow(torch.randint(SMALL, BIG + 1, (2, 11, 3), generator=torch.Generator().manual_seed(4)))
    with torch.autocast("cpu", torch.bfloat16):
        rough = duo.full_text(tokens, route)
    exact = duo.full_text(tokens, route)
    assert (rough - exact).norm() < 0.06 * exact.norm()


def test_equal_networks_make_all_routes_alike(tokens):
    duo = random_duo(5, intermediate_size=16, small_size=16)
    for i in range(3):
        duo.weights[f"layers.{i}.small_gate_up"].copy_(duo.weights[f"layers.{i}.gate_up"])
        duo.weights[f"layers.{i}.small_down"].copy_(duo.weights[f"layers.{i}.down"])
    expected = duo(tokens)
    for seed in range(3):
        choices = random_patterns(2, 11, 3, seed, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(duo.run(tokens, route=follow(choices)).logits, expected, **CLOSE)


@pytest.mark.parametrize("last_only", [True, False])
@pytest.mark.parametrize("past", [0, 2])
def test_counted_flops_are_the_formula(duo, tokens, past, last_only):
    choices = torch.randint(SKIP, BIG + 1, (2, 9, 3), generator=torch.Generator().manual_seed(6))
    cache = duo.new_cache(2)
    if past:
        duo.run(tokens[:, :past], cache)
    with sdpa_kernel(SDPBackend.MATH):  # torch's counter sees the products of this one, and 9 tokens reach it
        counted = counted_flops(
            lambda: duo.run(tokens[:, past : past + 9], cache, route=follow(choices), last_only=last_only)
        )
    assert counted == forward_flops(duo.config, choices, past, last_only)


def test_a_network_nobody_chose_costs_nothing(duo, tokens):
    flops = [counted_flops(lambda k=k: duo.run(tokens, route=follow(fixed_pattern("first", k, 3)))) for k in range(4)]
    assert flops == sorted(flops) and flops[3] - flops[2] == 6 * 24 * (40 - 8) * tokens.numel()


def test_decode_cost_is_the_formula_of_one_token():
    config = DuoConfig(**SHAPE)
    for k in (0, 3, 6):
        choices = torch.tensor(fixed_pattern("first", k, 6)).view(1, 1, 6)
        assert decode_cost(config, k, context=10).flops == forward_flops(config, choices, num_past=10)
    weights = sum(
        w.numel() for name, w in initial_weights(config).items() if "norm" not in name and "small" not in name
    )
    assert decode_cost(config, 6).bytes == 4 * weights


def test_the_model_has_the_planned_size():
    config = DuoConfig(**SHAPE)
    assert config.intermediate_size == 64 * config.small_size
    assert 2 * sum(w.numel() for w in initial_weights(config).values()) < 8e6  # bytes in fp16


@settings(deadline=None, max_examples=20)
@given(budget=st.integers(0, 6), seed=st.integers(0, 99))
def test_patterns_spend_exactly_the_budget(budget, seed):
    for kind in FIXED:
        pattern = fixed_pattern(kind, budget, 6)
        assert len(pattern) == 6 and pattern.count(BIG) == budget
    drawn = random_patterns(3, 7, 6, budget, torch.Generator().manual_seed(seed))
    assert ((drawn == BIG).sum(-1) == budget).all() and set(drawn.unique().tolist()) <= {SMALL, BIG}


def test_fixed_patterns_by_hand():
    assert fixed_pattern("first", 2, 6) == [1, 1, 0, 0, 0, 0] and fixed_pattern("last", 2, 6) == [0, 0, 0, 0, 1, 1]
    assert fixed_pattern("spread", 3, 6) == [0, 1, 0, 1, 0, 1] and fixed_pattern("spread", 1, 6) == [0, 0, 0, 1, 0, 0]


def test_random_patterns_use_every_layer_alike():
    share = (random_patterns(1, 6000, 6, 2, torch.Generator().manual_seed(0)) == BIG).float().mean((0, 1))
    assert (share - 1 / 3).abs().max() < 0.03


def test_the_method_gives_routes(duo, tokens):
    assert DuoLLM.paper == paper("duo_llm") and DuoLLM.kind == "model"
    for by in (*FIXED, "random"):
        choices = duo.run(tokens, route=DuoLLM(2, by).route(duo.config)).choices
        assert ((choices == BIG).sum(-1) == 2).all()
    assert (duo.run(tokens, route=DuoLLM(0, "first").route(duo.config)).choices == SMALL).all()
    half = duo.run(tokens, route=DuoLLM(0.5, "last").route(duo.config)).choices  # half of 3 layers: 1
    assert half[0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "bad, said",
    [
        (lambda duo: DuoLLM(4, "first").route(duo.config), "budget 4"),
        (lambda duo: DuoLLM(-1, "first").route(duo.config), "budget -1"),
        (lambda duo: DuoLLM(1.5, "first").route(duo.config), "budget 1.5"),
        (lambda duo: DuoLLM(1, "middle").route(duo.config), "router, random"),
        (lambda duo: fixed_pattern("middle", 1, 3), "first, last, spread"),
        (lambda duo: fixed_pattern("first", True, 3), "whole number"),
        (lambda duo: random_patterns(1, 1, 3, 4, torch.Generator()), "0 .all small. to 3"),
        (
            lambda duo: duo.run(torch.zeros(1, 4, dtype=torch.int64), route=lambda i, x: torch.full(x.shape[:2], 2)),
            "route of layer 0",
        ),
        (
            lambda duo: duo.run(torch.zeros(1, 4, dtype=torch.int64), route=lambda i, x: torch.zeros(x.shape[:2])),
            "whole numbers",
        ),
        (
            lambda duo: duo.run(
                torch.zeros(1, 4, dtype=torch.int64), route=lambda i, x: torch.zeros(4, dtype=torch.int64)
            ),
            "shape",
        ),
        (lambda duo: duo.run(torch.zeros(1, 0, dtype=torch.int64)), "empty prompt"),
        (lambda duo: duo.run(torch.zeros(1, 65, dtype=torch.int64)), "beyond the context"),
        (lambda duo: DuoLM(duo.config, duo.plain().weights), "small_gate_up.*missing"),
    ],
)
def test_bad_input_is_one_clear_error(duo, bad, said):
    with pytest.raises(ValueError, match=said):
        bad(duo)


def test_a_copy_in_another_dtype_keeps_both_networks(duo, tokens):
    half = duo.to(dtype=torch.float64)
    route = follow(fixed_pattern("spread", 1, 3))
    torch.testing.assert_close(
        half.run(tokens, route=route).logits.float(), duo.run(tokens, route=route).logits, **CLOSE
    )
