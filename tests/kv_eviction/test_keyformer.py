"""Keyformer: its three limits, its equality with H2O without noise, and noise that stays out of the attention."""
import numpy as np
import pytest
import torch
from scipy.stats import kstest

from frugal.core.generation import compressed_cache
from frugal.core.lm import LM, random_lm
from frugal.kv_eviction import HeavyHitter, Keyformer, noisy_score
from frugal.kv_eviction.noisy_score import gumbel_score
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


# -- noise by place -------------------------------------------------------------------------------------------------

def rows_of_attention(rows=6, num_new=3, slots=37, seed=0):
    """(R * G, T, S) probabilities; the first row of each head cannot see the last two slots."""
    logits = torch.randn(rows, num_new, slots, generator=torch.Generator().manual_seed(seed)) * 3
    logits[:, 0, -2:] = -torch.inf
    return logits.softmax(-1)


@pytest.mark.parametrize("tau", [0.05, 1.0, 1.7])
def test_the_compiled_pass_is_the_plain_score(tau):
    attn = rows_of_attention()
    ours = noisy_score.received(attn, 2, tau, torch.Generator().manual_seed(3))
    plain = gumbel_score(attn.log(), tau, torch.Generator().manual_seed(3)).unflatten(0, (2, 3)).mean(1).sum(1)
    assert torch.allclose(ours, plain, atol=1e-5) and torch.allclose(ours.sum(-1), torch.full((2,), 3.0), atol=1e-4)
    alone = noisy_score.received(attn[:, :1].contiguous(), 2, tau, torch.Generator().manual_seed(3))
    assert (alone[:, -2:] == 0).all()                                  # what no row may see has received nothing


def test_threads_do_not_change_the_noise():
    attn, scores = rows_of_attention(24, 1, 500), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        scores.append(noisy_score.received(attn, 8, 1.3, torch.Generator().manual_seed(1)))
    assert torch.equal(*scores)


def test_uniform_numbers_are_uniform_and_their_streams_apart():
    """Kolmogorov-Smirnov against the uniform law, and no correlation between neighbours, rows or keys."""
    first, second = (noisy_score.uniform((400, 500), noisy_score.draw_keys(torch.Generator().manual_seed(i))) for i in (0, 1))
    assert first.min() > 0 and first.max() < 1
    assert kstest(first.flatten().numpy(), "uniform").pvalue > 1e-3
    for a, b in [(first[:, :-1], first[:, 1:]), (first[:-1], first[1:]), (first, second), (first[:-7], first[7:])]:
        assert abs(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]) < 4 / a.numel() ** 0.5
    assert first.unique().numel() > 0.97 * first.numel()


def test_extreme_places_give_finite_scores():
    attn = torch.tensor([[[1e-38, 1.0, 0.0, 1e-30]]])
    for seed in range(50):
        score = noisy_score.received(attn, 1, 0.5, torch.Generator().manual_seed(seed))
        assert score.isfinite().all() and score[0, 2] == 0 and abs(float(score.sum()) - 1) < 1e-5
