"""Picture metrics against closed forms, loops and limits, and wrong versions that the same checks reject."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core import image_metrics as metrics


def draw(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(rows: int, width: int, seed: int) -> torch.Tensor:
    """A set whose mean is exactly 0 and whose covariance (N - 1) is exactly the identity."""
    x = draw(rows, width, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (rows - 1)).T)


@pytest.mark.parametrize("offset", [0.1, -0.25, 0.5])
def test_psnr_of_an_offset(offset):
    a = torch.full((3, 3, 4, 4), 0.5)
    assert metrics.psnr(a, a + offset).tolist() == pytest.approx([-20 * math.log10(abs(offset))] * 3, abs=1e-4)
    assert metrics.psnr(a, a).tolist() == [math.inf] * 3


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 8), seed=st.integers(0, 999))
def test_equal_covariances_leave_the_distance_of_means(width, seed):
    a, mix = whitened(60, width, seed), draw(width, width, seed + 1)
    shift = draw(1, width, seed + 2)[0]
    found = metrics.frechet_distance(a @ mix, whitened(60, width, seed + 3) @ mix + shift)
    assert found == pytest.approx(float(shift.square().sum()), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(m=st.floats(-3, 3), s=st.floats(0.1, 4), t=st.floats(0.1, 4))
def test_one_dimension(m, s, t):
    found = metrics.frechet_distance(whitened(40, 1, 0) * s, whitened(50, 1, 1) * t + m)
    assert found == pytest.approx(m ** 2 + (s - t) ** 2, abs=1e-6)


def test_commuting_covariances_and_identity():
    scales, others = torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([2.0, 2, 1, 0]).double()
    turn = torch.linalg.qr(draw(4, 4, 0))[0]
    found = metrics.frechet_distance(whitened(50, 4, 1) * scales @ turn, whitened(50, 4, 2) * others @ turn)
    assert found == pytest.approx(float((scales - others).square().sum()), abs=1e-6)
    x = draw(200, 16, 3)
    assert metrics.frechet_distance(x, x) < 1e-8
    assert metrics.frechet_distance(x, draw(100, 16, 4)) == pytest.approx(metrics.frechet_distance(draw(100, 16, 4), x))


def test_fewer_rows_than_features_stay_real():
    assert 0 < metrics.frechet_distance(draw(5, 32, 0), draw(7, 32, 1)) < 1e3


def kid_loop(a, b, unbiased=True):
    def kernel(x, y):
        return (float(x @ y) / len(x) + 1) ** 3
    within = []
    for s in (a, b):
        pairs = [kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j or not unbiased]
        within.append(sum(pairs) / len(pairs))
    return sum(within) - 2 * sum(kernel(x, y) for x in a for y in b) / len(a) / len(b)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(2, 9), m=st.integers(2, 9), seed=st.integers(0, 999))
def test_kernel_distance_against_a_loop(n, m, seed):
    a, b = draw(n, 5, seed), draw(m, 5, seed + 1)
    found = metrics.kernel_distance(a, b)
    assert found == pytest.approx(kid_loop(a, b), rel=1e-9, abs=1e-9)
    assert found != pytest.approx(kid_loop(a, b, unbiased=False), rel=1e-3)               # the usual mistake


def test_kernel_distance_does_not_grow_as_sets_shrink():
    small = [metrics.kernel_distance(draw(20, 8, 2 * i), draw(20, 8, 2 * i + 1)) for i in range(200)]
    assert abs(sum(small) / 200) < 3 * torch.tensor(small).std().item() / 200 ** 0.5
    efid = [metrics.frechet_distance(draw(n, 8, 1), draw(n, 8, 2)) for n in (20, 80, 2000)]
    assert efid[0] > 3 * efid[1] > 9 * efid[2]


def inside(points, centres, k):
    hits = 0
    for p in points:
        for i, c in enumerate(centres):
            own = sorted(float((c - o).norm()) for j, o in enumerate(centres) if j != i)
            if float((p - c).norm()) <= own[k - 1]:
                hits += 1
                break
    return hits / len(points)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(5, 12), m=st.integers(5, 12), k=st.integers(1, 4), seed=st.integers(0, 999))
def test_precision_and_recall_against_loops(n, m, k, seed):
    real, made = draw(n, 2, seed), draw(m, 2, seed + 1) * 1.5
    assert metrics.precision_recall(real, made, k) == pytest.approx((inside(made, real, k), inside(real, made, k)))


def test_precision_and_recall_at_their_limits():
    real = draw(50, 4, 0)
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    assert metrics.precision_recall(real, real + 100) == (0.0, 0.0)
    precision, recall = metrics.precision_recall(draw(300, 2, 1), draw(300, 2, 2) * 0.1)   # one mode only
    assert precision > 0.7 and recall < 0.1


def test_copy_rate_is_its_definition():
    train, held_out, made = draw(40, 3, 0), draw(300, 3, 1), torch.cat([draw(40, 3, 0)[:10] + 1e-6, draw(30, 3, 2) + 50])
    nearest = sorted(min(float((h - t).norm()) for t in train) for h in held_out)
    place = 0.01 * (len(nearest) - 1)
    low = int(place)
    threshold = nearest[low] + (place - low) * (nearest[low + 1] - nearest[low])
    assert metrics.copy_threshold(train, held_out) == pytest.approx(threshold)
    assert metrics.copy_rate(made, train, held_out) == 0.25
    assert metrics.copies(made, train, held_out).tolist() == [True] * 10 + [False] * 30
    assert metrics.copy_rate(train, train, held_out) == 1.0
    assert metrics.copy_rate(held_out, train, held_out) == pytest.approx(0.01, abs=0.005)


def stages(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 5, 2, 2, generator=generator)]


def test_perceptual_distance_against_loops():
    a, b = stages(0), stages(1)
    wanted = []
    for i in range(2):
        means = []
        for x, y in zip(a, b):
            cells = [(x[i, :, r, c] / x[i, :, r, c].norm() - y[i, :, r, c] / y[i, :, r, c].norm()).square().sum()
                     for r in range(x.shape[2]) for c in range(x.shape[3])]
            means.append(sum(cells) / len(cells))
        wanted.append(float(sum(means) / len(means)))
    assert metrics.perceptual_distance(a, b).tolist() == pytest.approx(wanted, rel=1e-4)
    assert metrics.perceptual_distance(a, a).abs().max() == 0
    scaled = [x * 7 for x in a]                                                           # only directions count
    assert metrics.perceptual_distance(scaled, a).abs().max() < 1e-6
    opposite = metrics.perceptual_distance(a, [-x for x in a])
    assert opposite.tolist() == pytest.approx([4, 4], abs=1e-4)


def test_gradients_reach_the_pictures_even_where_a_map_is_zero():
    a = [torch.zeros(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 2, 2, requires_grad=True)]
    metrics.perceptual_distance(a, stages(1)).sum().backward()
    assert all(x.grad.isfinite().all() for x in a) and a[1].grad.abs().sum() > 0


@pytest.mark.parametrize("call, said", [
    (lambda: metrics._same(torch.zeros(2, 3), torch.zeros(2, 2)), "equal shapes"),
    (lambda: metrics.perceptual_distance(stages(0), stages(0)[:1]), "same stages"),
    (lambda: metrics.perceptual_distance([], []), "same stages"),
    (lambda: metrics.frechet_distance(draw(1, 3, 0), draw(5, 3, 0)), "at least 2"),
    (lambda: metrics.frechet_distance(draw(4, 3, 0), draw(5, 2, 0)), "equal widths|Type-check"),                     # annotations are checked here
    (lambda: metrics.kernel_distance(draw(4, 3, 0) * math.nan, draw(5, 3, 0)), "finite"),
    (lambda: metrics.precision_recall(draw(4, 3, 0), draw(5, 3, 0), k=4), r"1\.\.3"),
    (lambda: metrics.copy_rate(draw(4, 3, 0), draw(0, 3, 0), draw(4, 3, 0)), "at least 1"),
])
def test_bad_sets_are_refused(call, said):
    with pytest.raises((ValueError, TypeError), match=said):
        call()
