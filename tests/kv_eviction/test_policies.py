"""All policies: exactly the budget, in order; full budget changes nothing; each score against a brute-force loop."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal import kv_eviction
from frugal.core.budgets import BudgetTooSmall
from frugal.core.eviction import Evictor, LayerView
from frugal.core.generation import generate
from frugal.core.lm import random_lm
from frugal.kv_eviction import TOVA, Full, HeavyHitter, Keyformer, Knorm, Random, SnapKV, StreamingLLM, Window

POLICIES = [cls() for cls in kv_eviction.ALL if cls.kind == "policy" and cls is not Full]
SMALL = [SnapKV(window=4) if isinstance(p, SnapKV) else p for p in POLICIES]
KV, GROUP = 2, 3
LM2 = random_lm()


def random_view(slots, seed, seqs=1, rows=4, step=0):
    """A view of random tensors with causal softmax rows for the last `rows` tokens."""
    g = torch.Generator().manual_seed(seed)
    r = seqs * KV
    logits = torch.randn(r * GROUP, rows, slots, generator=g) * 2
    last = torch.arange(slots - rows, slots)[:, None]
    attn = logits.masked_fill(torch.arange(slots) > last, -torch.inf).softmax(-1)
    return LayerView(0, 2, torch.randn(r, slots, 8, generator=g), torch.randn(r, slots, 8, generator=g),
                     torch.arange(slots).expand(r, -1).clone(), attn, slots, seqs, step, 8, {},
                     torch.Generator().manual_seed(seed))


def observed(policy, view):
    if hasattr(policy, "observe"):
        policy.observe(view)
    return view


@pytest.mark.parametrize("policy", SMALL, ids=lambda p: p.name)
@given(slots=st.integers(16, 60), seed=st.integers(0, 99), seqs=st.integers(1, 3), data=st.data())
@settings(max_examples=25, deadline=None)
def test_keeps_exactly_the_budget_in_order(policy, slots, seed, seqs, data):
    budget = data.draw(st.integers(max(5, policy.min_budget()), slots))
    kept = policy.keep(observed(policy, random_view(slots, seed, seqs)), budget)
    assert kept.shape == (seqs * KV, budget)
    assert kept.min() >= 0 and kept.max() < slots and (kept.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("policy", SMALL, ids=lambda p: p.name)
@pytest.mark.parametrize("protocol", ["compress_once", "fixed_size"])
def test_full_budget_is_full_attention(policy, protocol):
    prompt = list(range(1, 40))
    plain = generate(LM2, [prompt], max_new_tokens=1, stop_at_end=False)[0]
    ours = generate(LM2, [prompt], policy, 1.0, protocol, max_new_tokens=1, stop_at_end=False)[0]
    assert ours.tokens == plain.tokens


@pytest.mark.parametrize("policy", SMALL, ids=lambda p: p.name)
def test_fixed_size_never_exceeds_the_budget_and_bytes_follow(policy):
    held = []
    generate(LM2, [list(range(1, 41)), list(range(50, 90))], policy, 12, "fixed_size", max_new_tokens=10, stop_at_end=False,
             on_step=lambda step: held.append((step.num_held, step.num_bytes)))
    assert {n for counts, _ in held for n in counts} == {12}
    aux = 4 * (policy.needs != "none" or policy.name == "knorm")        # knorm keeps the norms it has computed
    slots = 2 * LM2.config.num_layers * LM2.config.num_kv_heads * 13               # two sequences, one free slot each
    assert held[-1][1] == slots * (2 * 8 * 4 + 8 + aux)


@pytest.mark.parametrize("policy", [p for p in SMALL if not isinstance(p, (Random, Keyformer))], ids=lambda p: p.name)
def test_order_of_the_batch_does_not_matter(policy):
    """Of those that draw no random numbers; for the others see test_noise_is_seeded."""
    a, b = list(range(1, 40)), list(range(60, 99))
    one = generate(LM2, [a, b], policy, 0.5, "fixed_size", max_new_tokens=6, stop_at_end=False)
    two = generate(LM2, [b, a], policy, 0.5, "fixed_size", max_new_tokens=6, stop_at_end=False)
    alone = generate(LM2, [a], policy, 0.5, "fixed_size", max_new_tokens=6, stop_at_end=False)
    assert [r.tokens for r in one] == [r.tokens for r in reversed(two)] and alone[0].tokens == one[0].tokens


def test_noise_is_seeded():
    prompt = [list(range(1, 60))]
    run = lambda policy, seed: generate(LM2, prompt, policy, 0.3, "fixed_size", 8, seed, stop_at_end=False)[0]  # noqa: E731
    for policy in (Random(), Keyformer()):
        same = run(policy, 3).cache.positions[0]
        assert torch.equal(same, run(policy, 3).cache.positions[0])
        assert not torch.equal(same, run(policy, 4).cache.positions[0])


@pytest.mark.parametrize("cls, need", [(StreamingLLM, 5), (SnapKV, 16)])
def test_a_budget_below_what_is_protected_is_refused(cls, need):
    with pytest.raises(BudgetTooSmall, match=f"{need} tokens"):
        Evictor(cls(), need - 1)


# -- each score against a loop -----------------------------------------------------------------------------------

def by_head(view, r):
    return view.attn[r * GROUP:(r + 1) * GROUP]


def best(score, budget, protected):
    """The plain loop: protected first, then by score, ties to the lower slot."""
    order = sorted(range(len(score)), key=lambda s: (s not in protected, -float(score[s]), s))
    return sorted(order[:budget])


@given(slots=st.integers(20, 40), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_scores_against_loops(slots, seed):
    view, budget = random_view(slots, seed), 12
    new = lambda n: set(range(slots - n, slots))                                                # noqa: E731
    for r in range(KV):
        heads = by_head(view, r)
        mass = [sum(float(heads[g, t, s]) for g in range(GROUP) for t in range(4)) for s in range(slots)]
        assert HeavyHitter().keep(observed(HeavyHitter(), random_view(slots, seed)), budget)[r].tolist() == best(mass, budget, new(6))
        counted = [m / (slots - s) for s, m in enumerate(mass)]
        h2o = HeavyHitter(normalize="count")
        assert h2o.keep(observed(h2o, random_view(slots, seed)), budget)[r].tolist() == best(counted, budget, new(6))
        norms = [-math.sqrt(sum(float(x) ** 2 for x in view.keys[r, s])) for s in range(slots)]
        assert Knorm().keep(view, budget)[r].tolist() == best(norms, budget, set())
        last = [sum(float(view.attn[h, -1, s]) for h in range(KV * GROUP)) for s in range(slots)]
        assert TOVA().keep(observed(TOVA(), random_view(slots, seed)), budget)[r].tolist() == best(last, budget, set())
        snap = SnapKV(window=4)
        pooled = [sum(mass[s + d] for d in range(-2, 3) if 0 <= s + d < slots - 4) for s in range(slots)]
        assert snap.keep(observed(snap, random_view(slots, seed)), budget)[r].tolist() == best(pooled, budget, new(4))
        assert StreamingLLM().keep(view, budget)[r].tolist() == [0, 1, 2, 3, *range(slots - 8, slots)]
        assert Window().keep(view, budget)[r].tolist() == list(range(slots - 12, slots))


def test_shared_heads_and_whole_tokens():
    for policy in (TOVA(), HeavyHitter(share_heads=True), Keyformer(share_heads=True), SnapKV(4, share_heads=True), Random(per_head=False)):
        kept = policy.keep(observed(policy, random_view(40, 1, seqs=2)), 12)
        assert torch.equal(kept[0], kept[1]) and torch.equal(kept[2], kept[3])
    own = HeavyHitter().keep(observed(HeavyHitter(), random_view(40, 1)), 12)
    assert not torch.equal(own[0], own[1])


# -- planted wrong policies must fail the same loop --------------------------------------------------------------

class ForgetsRecent(HeavyHitter):
    """Sums attention but protects nothing."""
    def keep(self, view, budget):
        from frugal.core.budgets import top_slots
        return top_slots(view.aux["mass"], budget)


class LastRowOnly(HeavyHitter):
    """Scores by the last row and calls it accumulated."""
    def observe(self, view):
        view.aux["mass"] = view.by_kv_head(view.attn)[:, -1]


@given(slots=st.integers(4, 40), rows=st.integers(1, 4), seqs=st.integers(1, 3), seed=st.integers(0, 99))
def test_attention_received_is_the_mean_over_a_group_of_the_sum_over_rows(slots, rows, seqs, seed):
    view = random_view(slots, seed, seqs, rows)
    by_hand = torch.stack([view.attn[r * GROUP:(r + 1) * GROUP].sum((0, 1)) / GROUP for r in range(seqs * KV)])
    assert torch.allclose(view.received(), by_hand, atol=1e-5)
    view.attn = view.attn.double()                                  # no compiled loop for these
    assert torch.allclose(view.received().float(), by_hand, atol=1e-5)


class FirstHeadOnly(HeavyHitter):
    """Takes one query head of the group for all."""
    def observe(self, view):
        view.aux["mass"] = view.attn.unflatten(0, (view.num_rows, -1))[:, 0].sum(1)


@pytest.mark.parametrize("wrong", [ForgetsRecent, LastRowOnly, FirstHeadOnly])
def test_wrong_policies_are_rejected(wrong):
    differs = 0
    for seed in range(10):
        view = random_view(30, seed)
        heads = by_head(view, 0)
        mass = [sum(float(heads[g, t, s]) for g in range(GROUP) for t in range(4)) for s in range(30)]
        kept = wrong().keep(observed(wrong(), random_view(30, seed)), 12)[0].tolist()
        differs += kept != best(mass, 12, set(range(24, 30)))
    assert differs >= 8


@pytest.mark.parametrize("window", [0, 257])
def test_snapkv_refuses_a_window_beyond_one_block_of_rows(window):
    with pytest.raises(ValueError, match=f"1 to 256 tokens, got {window}"):
        SnapKV(window=window)
