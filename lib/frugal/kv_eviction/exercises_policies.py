"""Exercises on eviction policies: sinks and recent tokens, and Keyformer's noisy score."""
import math

import torch

from frugal.explore.exercises import Exercise, wrong
from frugal.kv_eviction.noisy_score import gumbel_score as reference_score

__all__ = ["EXERCISES", "gumbel_score", "sinks_and_recent"]


def _keep(num_slots: int, budget: int, sinks: int = 4) -> list[int]:
    budget = min(budget, num_slots)
    sinks = min(sinks, budget)
    return list(range(sinks)) + list(range(max(sinks, num_slots - (budget - sinks)), num_slots))


def _check_keep(keep) -> None:
    for num_slots, budget, sinks in [(10, 6, 4), (12, 7, 2), (8, 5, 0), (5, 9, 4), (6, 6, 4), (9, 3, 4)]:
        kept, case = list(keep(num_slots, budget, sinks)), f"keep({num_slots}, {budget}, sinks={sinks})"
        want = _keep(num_slots, budget, sinks)
        said = f"kept {kept}, expected {want}"
        if len(kept) > min(budget, num_slots):
            wrong(f"kept {len(kept)} of {min(budget, num_slots)}", "do the sinks count towards the budget?", case)
        if len(set(kept)) < len(kept):
            wrong(said, "a slot is listed twice: where the sinks and the recent window meet, count it once", case)
        if sorted(kept) == want and kept != want:
            wrong(said, "slots are wanted in ascending order", case)
        if kept and max(kept) < num_slots - 1 and len(want) > sinks:
            wrong(said, "the newest slot is num_slots - 1: is the window at the end of the text?", case)
        if kept != want:
            wrong(said, "the first `sinks` slots, then as many of the newest as the budget still allows", case)


def _sinks_on_top(num_slots, budget, sinks=4):
    return list(range(min(sinks, num_slots))) + list(range(max(sinks, num_slots - budget), num_slots))


def _oldest(num_slots, budget, sinks=4):
    return list(range(min(budget, num_slots)))


def _unsorted(num_slots, budget, sinks=4):
    kept = _keep(num_slots, budget, sinks)
    return kept[::-1]


def _no_sinks(num_slots, budget, sinks=4):
    return list(range(max(0, num_slots - budget), num_slots))


sinks_and_recent = Exercise(
    key="sinks_and_recent", title="Sinks and recent tokens",
    prompt="Return the slots that StreamingLLM keeps: the first `sinks` slots and the newest ones, `budget` in all, "
           "ascending. A budget above `num_slots` keeps everything; one below `sinks` keeps the first `budget`.",
    stub='''def keep_sinks_and_recent(num_slots: int, budget: int, sinks: int = 4) -> list[int]:
    raise NotImplementedError  # yours''',
    test=_check_keep,
    hints=("How many slots are left for the newest tokens once the sinks are kept?",
           "With 10 slots, a budget of 6 and 4 sinks the answer is [0, 1, 2, 3, 8, 9]."),
    difficulty=1, minutes=5, reference=_keep,
    wrong=[(_sinks_on_top, "do the sinks count"), (_oldest, "at the end of the text"), (_unsorted, "ascending"),
           (_no_sinks, "first `sinks` slots")])


def _check_score(score) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 6, generator=generator) * 2
    flat = score(logits, 1e6, torch.Generator().manual_seed(0))
    if not torch.allclose(flat.sum(-1), torch.ones(4), atol=1e-4):
        wrong(f"a row sums to {float(flat.sum(-1)[0]):.3g}, expected 1", "the last step is a softmax along the last axis")
    if not torch.allclose(flat, torch.full_like(flat, 1 / 6), atol=1e-3):
        wrong(f"at tau = 1e6 a row is {[round(v, 3) for v in flat[0].tolist()]}, expected 1/6 everywhere",
              "a large tau flattens: divide by tau, and the noise too")
    draws = torch.stack([score(logits, 1e-3, torch.Generator().manual_seed(i)) for i in range(3000)])
    if not torch.allclose(draws[0].sum(-1), torch.ones(4), atol=1e-4) or float(draws.std(0).max()) < 0.05:
        wrong("two generators give the same score", "fresh noise for every logit, drawn from the generator")
    clean, found = logits.softmax(-1), draws.mean(0)
    gap = float((found - clean).abs().max())
    if gap > 0.05:
        mirrored = float((found - _mean_of_mirrored(logits)).abs().max()) < 0.05
        hint = ("Gumbel noise is -log(-log u): check the signs" if mirrored else
                "as tau goes to 0 the mean over many draws is the plain softmax (the Gumbel-max trick): is the noise "
                "-log(-log u), with u uniform in (0, 1)?")
        wrong(f"the mean of 3,000 draws at tau = 0.001 is {gap:.2f} away from softmax(logits)", hint)
    hidden = logits.clone()
    hidden[:, 3:] = -math.inf
    if not torch.equal(score(hidden, 1.0, torch.Generator().manual_seed(1))[:, 3:], torch.zeros(4, 3)):
        wrong("a logit of -inf got a score above 0", "a token that may not be seen keeps probability 0, noise or not")


def _mean_of_mirrored(logits):
    """Mean of many draws with the sign of the noise turned round."""
    generator = torch.Generator().manual_seed(9)
    uniform = torch.rand(3000, *logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    return ((logits + (-uniform.log()).log()) / 1e-3).softmax(-1).mean(0)


def _reference_score(logits, tau, generator):
    return reference_score(logits, tau, generator)


def _no_noise(logits, tau, generator):
    return (logits / tau).softmax(-1)


def _outside(logits, tau, generator):
    u = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    return (logits / tau - (-u.log()).log()).softmax(-1)


def _wrong_sign(logits, tau, generator):
    u = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    return ((logits + (-u.log()).log()) / tau).softmax(-1)


def _uniform(logits, tau, generator):
    return ((logits + torch.rand(logits.shape, generator=generator)) / tau).softmax(-1)


gumbel_score = Exercise(
    key="gumbel_score", title="Keyformer's noisy score",
    prompt="Return `softmax((logits + noise) / tau)` along the last axis; the noise is Gumbel, fresh for every logit, "
           "drawn with `generator`. Three limits grade it: a huge tau gives equal scores, a tiny tau gives the plain "
           "softmax on average, and a logit of `-inf` stays at 0.",
    stub='''def noisy_score(logits: torch.Tensor, tau: float, generator: torch.Generator) -> torch.Tensor:
    raise NotImplementedError  # yours''',
    test=_check_score,
    hints=("A Gumbel number is -log(-log(u)) with u uniform in (0, 1): torch.rand(..., generator=generator).",
           "Add the noise to the logits first, then divide both by tau."),
    difficulty=2, minutes=10, reference=_reference_score,
    wrong=[(_no_noise, "fresh noise"), (_outside, "divide by tau, and the noise too"), (_wrong_sign, "check the signs"),
           (_uniform, "gumbel-max")])

EXERCISES = [sinks_and_recent, gumbel_score]
