"""ResGen: depth masks against the multivariate hypergeometric law, the mixture against torch.distributions, the sampler's limits,
and planted wrong versions that these checks must reject."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, multivariate_hypergeom
from torch import distributions as td

from frugal.models.quantizers import ResidualVQ
from frugal.visual_tokenizers.resgen import (
    MoGHead,
    Mixture,
    ResGen,
    depth_mask,
    hidden_levels,
    training_counts,
    visible,
)
from frugal.visual_tokenizers.resgen_sampling import generate, hidden_counts, next_hidden, propose, residual_codes

L, D, K, DIM = 4, 3, 6, 2
CLASSES = torch.tensor([0, 1, 2])


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codebooks(depth: int = D, size: int = K, dim: int = DIM) -> torch.Tensor:
    return torch.randn(depth, size, dim, generator=seeded(5)) * 0.5 ** torch.arange(depth)[:, None, None]


def model(**options) -> ResGen:
    torch.manual_seed(0)
    made = ResGen(
        codebooks(), length=L, num_classes=2, width=16, num_blocks=2, num_heads=2, **{"components": 4, **options}
    ).eval()
    for p in made.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    made.measure_scales(codes(64))
    return made.requires_grad_(False)


def codes(batch: int = 3, seed: int = 2) -> torch.Tensor:
    return torch.randint(K, (batch, L, D), generator=seeded(seed))


# -- depth masks ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 7), depth=st.integers(1, 6), data=st.data())
def test_a_mask_hides_n_slots_and_always_the_deep_end(length, depth, data):
    n = data.draw(st.integers(0, length * depth))
    mask = depth_mask(n, length, depth, seeded(n))
    assert mask.shape == (length, depth) and int((~mask).sum()) == n
    for row in mask.tolist():
        assert row == sorted(row, reverse=True)


def counts_law(draw, n: int = 4, length: int = 3, depth: int = 3, trials: int = 4000) -> float:
    """p value of hidden counts a place against scipy's multivariate hypergeometric law."""
    cases = [k for k in product(range(depth + 1), repeat=length) if sum(k) == n]
    expected = torch.tensor([multivariate_hypergeom.pmf(k, [depth] * length, n) for k in cases]) * trials
    seen = {k: 0 for k in cases}
    for row in draw(torch.full((trials,), n), length, depth, seeded(3)).tolist():
        seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    assert sum(seen[k] for k in cases) == trials
    return float(chisquare(list(seen.values()), expected.tolist()).pvalue)


def with_replacement(counts, length, depth, generator):
    """Each slot goes to a place drawn afresh; full places pass it on."""
    rows = []
    for n in counts.tolist():
        row = [0] * length
        for _ in range(n):
            free = [i for i in range(length) if row[i] < depth]
            row[free[int(torch.randint(len(free), (), generator=generator))]] += 1
        rows.append(row)
    return torch.tensor(rows)


def test_hidden_counts_follow_the_hypergeometric_law():
    assert counts_law(hidden_levels) > 0.01


def test_drawing_places_instead_of_slots_is_seen():
    assert counts_law(with_replacement) < 1e-6


def test_training_counts_follow_the_cosine():
    counts = training_counts(20_000, 24, seeded())
    assert counts.min() >= 1 and counts.max() == 24
    assert (
        abs(float(counts.float().mean()) / 24 - (2 / math.pi + 0.5 / 24)) < 0.01
    )  # mean of cos, and half a slot of ceil


# -- the mixture ---------------------------------------------------------------------------------------------------


def test_log_density_is_that_of_the_library_and_a_loop():
    mixture = MoGHead(16, 3, 5)(torch.randn(4, 7, 16, generator=seeded()))
    z = torch.randn(4, 7, 3, generator=seeded(2))
    parts = td.Independent(td.Normal(mixture.means, mixture.spread[..., None, None].expand_as(mixture.means)), 1)
    library = td.MixtureSameFamily(td.Categorical(logits=mixture.log_weights), parts)
    assert torch.allclose(mixture.log_prob(z), library.log_prob(z), atol=1e-5)
    assert torch.allclose(mixture.log_weights.exp().sum(-1), torch.ones(4, 7))


def test_one_component_is_regression():
    mixture = MoGHead(16, 3, 1)(torch.randn(9, 16, generator=seeded()))
    z, s = torch.randn(9, 3, generator=seeded(2)), mixture.spread
    constant = 3 * (s.log() + 0.5 * math.log(2 * math.pi))
    mean_square = (z - mixture.means[:, 0]).square().mean(-1)
    assert torch.allclose(-mixture.log_prob(z), 3 * mean_square / (2 * s.square()) + constant, atol=1e-5)


def test_the_spread_has_a_floor():
    head = MoGHead(16, 3, 2, floor=0.05)
    torch.nn.init.constant_(head.out.bias, -1e4)
    assert torch.allclose(head(torch.zeros(2, 16)).spread, torch.tensor(0.05))


# -- what the model sees and is asked for --------------------------------------------------------------------------


def test_with_all_hidden_the_codes_do_not_matter_and_with_some_only_the_visible_ones():
    gen, a, b = model(), codes(), codes(seed=9)
    everything = torch.full((3, L), D)
    assert torch.equal(gen.states(a, everything, CLASSES), gen.states(b, everything, CLASSES))
    hidden = hidden_levels(torch.tensor([5, 5, 5]), L, D, seeded())
    mixed = torch.where(visible(hidden, D), a, b)
    assert torch.equal(gen.states(a, hidden, CLASSES), gen.states(mixed, hidden, CLASSES))
    assert not torch.allclose(gen.states(a, hidden, CLASSES), gen.states(b, hidden, CLASSES), atol=1e-4)


def test_the_target_is_the_sum_of_the_hidden_code_vectors():
    gen, some, hidden = model(), codes(), torch.tensor([[0, 1, 2, 3]] * 3)
    for b, place, k in product(range(3), range(L), [0]):
        k = int(hidden[b, place])
        wanted = sum((gen.codebooks[j, some[b, place, j]] for j in range(D - k, D)), torch.zeros(DIM))
        assert torch.allclose(gen.target(some, hidden)[b, place] * gen.spread_of(hidden)[b, place], wanted, atol=1e-6)


def test_scales_are_the_spread_of_suffix_sums():
    gen, some = model(), codes(64)
    for k in range(1, D + 1):
        sums = sum(gen.codebooks[j][some[..., j]] for j in range(D - k, D))
        assert torch.allclose(gen.scales[k - 1], sums.square().mean().sqrt(), atol=1e-6)


def loss_by_definition(gen, some, hidden, everywhere=False, levels=None) -> torch.Tensor:
    target = gen.target(some, hidden) if levels is None else gen.target(some, torch.full_like(hidden, levels))
    nats = -gen.head(gen.states(some, hidden, CLASSES)).log_prob(target)
    return nats.mean() if everywhere else nats[hidden > 0].mean()


def test_loss_counts_only_places_that_hide_something():
    gen, some = model(), codes()
    hidden, _ = gen.training_case(some, CLASSES, seeded(8))
    assert bool((hidden == 0).any())
    found = gen.loss(some, CLASSES, seeded(8))
    assert torch.allclose(found, loss_by_definition(gen, some, hidden), atol=1e-6)
    assert not torch.allclose(found, loss_by_definition(gen, some, hidden, everywhere=True), atol=1e-3)
    assert not torch.allclose(found, loss_by_definition(gen, some, hidden, levels=D), atol=1e-3)


# -- quantizing a sum with the hidden levels -----------------------------------------------------------------------


def by_loop(z, hidden, books) -> list[int]:
    """Greedy, over the hidden levels alone."""
    found, left = [0] * len(books), z.clone()
    for level in range(len(books) - hidden, len(books)):
        found[level] = int((left - books[level]).square().sum(-1).argmin())
        left = left - books[level][found[level]]
    return found


def all_levels(z, hidden, books):
    """The planted mistake: z spent on every level, of which the hidden ones are kept."""
    found = residual_codes(z, torch.full_like(hidden, len(books)), books)
    return torch.where(visible(hidden, len(books)), 0, found)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_codes_of_a_sum_are_those_of_the_loop(seed):
    z, hidden = torch.randn(2, 5, DIM, generator=seeded(seed)), torch.randint(0, D + 1, (2, 5), generator=seeded(seed))
    found = residual_codes(z, hidden, codebooks())
    assert all(
        found[b, i].tolist() == by_loop(z[b, i], int(hidden[b, i]), codebooks()) for b in range(2) for i in range(5)
    )


def test_quantizing_with_all_levels_is_seen():
    z, hidden = torch.randn(50, DIM, generator=seeded()) * 0.3, torch.full((50,), 1)
    assert not torch.equal(all_levels(z, hidden, codebooks()), residual_codes(z, hidden, codebooks()))


def test_with_all_levels_hidden_it_is_the_tokenizers_own_quantizer():
    torch.manual_seed(0)
    rvq = ResidualVQ(D, K, DIM).eval()
    z = torch.randn(40, DIM)
    assert torch.equal(
        residual_codes(z, torch.full((40,), D), torch.stack([x.codebook for x in rvq.levels])), rvq(z).codes
    )


# -- sampling ------------------------------------------------------------------------------------------------------


def hidden_after(score, noise, hidden, count) -> list[int]:
    """One picture, slot by slot: the lowest keys stay hidden; a place's keys never rise with depth."""
    slots, depth = [], noise.shape[-1]
    for i, k in enumerate(hidden.tolist()):
        lowest = math.inf
        for j in range(depth - k, depth):
            lowest = min(lowest, float(score[i] + noise[i, j]))
            slots.append((lowest, depth - j, i))
    stay = [i for *_, i in sorted(slots)[:count]]
    return [stay.count(i) for i in range(len(hidden))]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), data=st.data())
def test_what_stays_hidden_is_what_the_loop_leaves(seed, data):
    hidden = torch.randint(0, D + 1, (1, L), generator=seeded(seed))
    count = data.draw(st.integers(0, int(hidden.sum())))
    score, noise = torch.randn(1, L, generator=seeded(seed)), torch.randn(1, L, D, generator=seeded(seed + 1))
    found = next_hidden(score, noise, hidden, torch.tensor([count]))
    assert found[0].tolist() == hidden_after(score[0], noise[0], hidden[0], count)
    assert int(found.sum()) == count and bool((found <= hidden).all())


def test_without_noise_places_open_one_after_the_other():
    score = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    found = next_hidden(score, torch.zeros(1, L, D), torch.full((1, L), D), torch.tensor([7]))
    assert found.tolist() == [[3, 0, 1, 3]]  # the ninth slot is place 2's, from the shallow end


@settings(max_examples=40, deadline=None)
@given(slots=st.integers(1, 200), data=st.data())
def test_the_schedule_ends_at_nothing_and_never_rises(slots, data):
    steps = data.draw(st.integers(1, slots))
    counts = hidden_counts(slots, steps)
    assert len(counts) == steps and counts[-1] == 0 and counts == sorted(counts, reverse=True) and counts[0] <= slots
    assert all(abs(c - math.cos(math.pi / 2 * (s + 1) / steps) * slots) <= 1 for s, c in enumerate(counts))


def test_every_step_keeps_the_schedule_and_what_is_seen_stays():
    steps = []
    made = generate(model(), CLASSES, seeded(), num_steps=5, on_step=lambda s, c, h: steps.append((c, h)))
    assert [hidden.sum(1).tolist() for _, hidden in steps] == [[n] * 3 for n in hidden_counts(L * D, 5)]
    for (before, hidden), (after, later) in zip(steps, steps[1:]):
        seen = visible(hidden, D)
        assert torch.equal(before[seen], after[seen]) and bool((later <= hidden).all())
    assert torch.equal(made, steps[-1][0]) and torch.equal(made, generate(model(), CLASSES, seeded(), num_steps=5))


def test_nothing_hidden_returns_the_codes_and_a_start_keeps_what_is_visible():
    gen, some = model(), codes()
    assert torch.equal(generate(gen, CLASSES, seeded(), start=(some, torch.zeros(3, L, dtype=torch.long))), some)
    hidden = hidden_levels(torch.tensor([3, 7, 12]), L, D, seeded())
    made = generate(gen, CLASSES, seeded(), num_steps=3, start=(some, hidden))
    seen = visible(hidden, D)
    assert torch.equal(made[seen], some[seen]) and not torch.equal(made, some)


def test_cold_draws_are_the_likeliest_component():
    gen, some, everything = model(), codes(), torch.full((3, L), D)
    found, score = propose(gen, some, everything, CLASSES, None, 0.0, 1.0)
    mixture = gen.head(gen.states(some, everything, CLASSES))
    means = mixture.at(mixture.log_weights.argmax(-1))
    assert torch.equal(found, residual_codes(means * gen.spread_of(everything), everything, gen.codebooks))
    assert torch.allclose(score, mixture.log_prob(means))


def test_one_level_draws_are_spread_as_the_mixture_says():
    """With one place, one level and far-apart codes, sampled codes are distributed like the mixture's weights."""
    books = torch.tensor([[[-4.0], [0.0], [4.0]]])
    torch.manual_seed(0)
    gen = (
        ResGen(books, length=1, num_classes=2, width=8, num_blocks=1, num_heads=2, components=3)
        .eval()
        .requires_grad_(False)
    )
    weights = torch.tensor([0.2, 0.5, 0.3])
    gen.head.forward = lambda states: Mixture(
        weights.log().expand(len(states), 1, 3),
        books[0].expand(len(states), 1, 3, 1),
        torch.full((len(states), 1), 0.3),
    )
    many = torch.zeros(6000, dtype=torch.long)
    share = torch.bincount(generate(gen, many, seeded(), num_steps=1).flatten(), minlength=3) / 6000
    assert torch.allclose(share, weights, atol=0.02)
    only = generate(gen, many, seeded(), num_steps=1, top_p=0.45).flatten()
    assert set(only.tolist()) == {1}


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda gen: generate(gen, CLASSES, num_steps=0), r"num_steps must be in 1\.\.12"),
        (lambda gen: generate(gen, CLASSES, num_steps=13), r"num_steps must be in 1\.\.12"),
        (lambda gen: generate(gen, torch.tensor([3])), r"classes must be in 0\.\.2"),
        (lambda gen: generate(gen, CLASSES, top_p=0.0), "top_p"),
        (lambda gen: generate(gen, CLASSES, temperature=-1.0), "temperature"),
        (lambda gen: gen.loss(torch.full((3, L, D), K), CLASSES), r"codes must be in 0\.\.5"),
        (lambda gen: gen.loss(torch.zeros(3, L, D + 1, dtype=torch.long), CLASSES), "deeper codes are cut"),
        (lambda gen: depth_mask(13, L, D), r"counts must be in 0\.\.12"),
        (lambda gen: MoGHead(8, 2, 0), "components >= 1"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(model())


def test_the_exercise_takes_the_reference_and_names_each_mistake():
    from frugal.explore.exercises import problems
    from frugal.visual_tokenizers.exercises_resgen import EXERCISES

    assert [problems(exercise) for exercise in EXERCISES] == [[]]
