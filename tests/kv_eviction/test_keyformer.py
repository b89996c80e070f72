"""Keyformer: its three limits, its equality with H2O without noise, and noise that stays out of the attention."""
import pytest
import torch

from frugal.core.generation import compressed_cache
from frugal.core.lm import LM, random_lm
from frugal.kv_eviction import HeavyHitter, Keyformer
from frugal.kv_eviction.keyformer import gumbel_score
from tests.kv_eviction.test_policies import observed, random_view

LM2 = random_lm()
PROMPT = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(5)).tolist()


def kept_positions(policy, budget=0.4, steps=0, protocol="fixed_size"):
    cache, logits, evictor = compressed_cache(LM2, PROMPT, policy, budget, protocol=protocol, max_steps=8)
    for _ in range(steps):
        logits = LM2(logits.argmax().view(1, 1), cache)[0, -1]
        evictor.after_forward(cache)
    return [p.sort(-1).values for p in cache.positions], logits


@pytest.mark.parametrize("steps", [0, 6])
def test_without_noise_and_heat_it_is_h2o(steps):
    quiet = Keyformer(noise="none", tau_start=1.0, tau_end=1.0, recent=0.5)
    ours, h2o = kept_positions(quiet, steps=steps)[0], kept_positions(HeavyHitter(recent=0.5), steps=steps)[0]
    assert all(torch.equal(a[..., :24], b[..., :24]) for a, b in zip(ours, h2o))
    noisy = kept_positions(Keyformer(recent=0.5), steps=steps)[0]
    assert not all(torch.equal(a[..., :24], b[..., :24]) for a, b in zip(noisy, h2o))


def test_a_huge_temperature_counts_exposure():
    """tau -> infinity: F_j is the sum over rows i >= j of 1 / (i + 1). The model attends gently here: a probability
    that underflows to 0 could not be told from one that is masked."""
    gentle = LM(LM2.config, {k: w * (0.2 if k.endswith("qkv") else 1) for k, w in LM2.weights.items()}, LM2.tokenizer)
    cache, _, _ = compressed_cache(gentle, PROMPT, Keyformer(tau_start=1e9, tau_end=1e9), 1.0)
    harmonic = [sum(1 / (i + 1) for i in range(j, len(PROMPT))) for j in range(len(PROMPT))]
    assert torch.allclose(cache.aux[0]["score"][0], torch.tensor(harmonic).expand(2, -1), atol=1e-4)


def test_a_tiny_temperature_samples_the_softmax():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    draws = torch.stack([gumbel_score(logits, 1e-4, torch.Generator().manual_seed(i)) for i in range(6000)])
    assert torch.allclose(draws.mean(0), logits.softmax(-1), atol=0.03)


def test_noise_never_touches_the_output():
    """At a full budget every seed and every noise gives the same logits, to the last bit of the same path."""
    clean = kept_positions(Keyformer(noise="none", tau_end=1.0), 1.0, steps=0)[1]
    for noise in ("gumbel", "gaussian"):
        assert torch.equal(kept_positions(Keyformer(noise=noise), 1.0, steps=0)[1], clean)


def test_gaussian_noise_has_gumbels_variance():
    g = torch.Generator().manual_seed(0)
    flat = torch.zeros(200_000)
    gumbel = gumbel_score(flat, 1.0, g).log()
    gauss = gumbel_score(flat, 1.0, g, "gaussian").log()
    assert abs(gumbel.var() / gauss.var() - 1) < 0.03


def test_masked_logits_stay_at_zero():
    logits = torch.tensor([0.0, 1.0, -torch.inf])
    assert gumbel_score(logits, 2.0, torch.Generator().manual_seed(0))[2] == 0


def test_temperature_rises_with_the_tokens():
    k = Keyformer()
    assert [k.temperature(i, 10) for i in (0, 5, 10)] == [1.0, 1.5, 2.0]


class NoiseLeaks(Keyformer):
    """The planted mistake: the noisy row becomes the attention row itself (what the score would then do to H2O)."""
    def observe(self, view):
        noisy = gumbel_score(view.attn.log(), 1.0, view.generator)
        received = view.by_kv_head(noisy).mean(1)                       # and it averages rows instead of summing
        view.aux["score"] = received


def test_a_wrong_score_is_rejected():
    cache, _, _ = compressed_cache(LM2, PROMPT, NoiseLeaks(), 1.0)
    harmonic = torch.tensor([sum(1 / (i + 1) for i in range(j, len(PROMPT))) for j in range(len(PROMPT))])
    assert not torch.allclose(cache.aux[0]["score"][0, 0], harmonic, atol=1e-1)


def test_noise_is_fresh_for_every_logit():
    view = random_view(20, 0)
    one = observed(Keyformer(), view).aux["score"]
    assert not torch.equal(one, observed(Keyformer(), random_view(20, 1)).aux["score"])
    rows = gumbel_score(torch.zeros(50, 20), 1.0, torch.Generator().manual_seed(0))
    assert len({tuple(r.tolist()) for r in rows}) == 50


@pytest.mark.parametrize("options", [{"noise": "pink"}, {"tau_start": 0.0}, {"recent": 1.0}])
def test_bad_settings(options):
    with pytest.raises(ValueError):
        Keyformer(**options)
