"""ResGen's rivals: cached = whole forward, levels in order, counted passes; and wrong versions that are told apart."""

import pytest
import torch

from frugal.core.measure import counted_flops
from frugal.core.sampling import draw
from frugal.visual_tokenizers import resgen_measure as measure
from frugal.visual_tokenizers.resgen import ResGen
from frugal.visual_tokenizers.resgen_baselines import FlatMaskGIT, LevelHeads, RQTransformer, SoftmaxHeads, by_level

L, D, K, DIM = 4, 3, 6, 2
CLASSES = torch.tensor([0, 1, 2])
BOOKS = torch.randn(D, K, DIM, generator=torch.Generator().manual_seed(5))
SIZES = {"length": L, "num_classes": 2, "width": 16, "num_blocks": 2, "num_heads": 2}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(kind, **options):
    torch.manual_seed(0)
    model = kind(BOOKS, **SIZES, **options).eval().requires_grad_(False)
    for p in model.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    return model


def codes(seed: int = 2) -> torch.Tensor:
    return torch.randint(K, (3, L, D), generator=seeded(seed))


def rq_by_definition(rq, temperature, fresh_sum=False) -> torch.Tensor:
    """A whole forward pass for each code; fresh_sum: the mistake of forgetting the shallower levels of the place."""
    generator, found = seeded(), torch.zeros(3, L, D, dtype=torch.long)
    for place in range(L):
        for level in range(D):
            logits = rq(found, CLASSES)[:, place, level]
            if fresh_sum:
                blind = found.clone()
                blind[:, place, :level] = 0
                logits = rq(blind, CLASSES)[:, place, level]
            found[:, place, level] = draw(logits, generator, temperature)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_the_cached_rq_sampler_is_the_uncached_one(temperature):
    rq = made(RQTransformer)
    assert torch.equal(rq.generate(CLASSES, seeded(), temperature), rq_by_definition(rq, temperature))


def test_a_depth_loop_that_forgets_shallower_levels_is_seen():
    rq = made(RQTransformer)
    assert not torch.equal(rq.generate(CLASSES, seeded()), rq_by_definition(rq, 1.0, fresh_sum=True))


def test_rq_logits_depend_on_earlier_codes_only():
    rq, a = made(RQTransformer), codes()
    b = a.clone()
    b[:, 2, 1:] = (b[:, 2, 1:] + 1) % K  # place 2 from its second level on
    x, y = rq(a, CLASSES), rq(b, CLASSES)
    assert torch.allclose(x[:, :2], y[:, :2]) and torch.allclose(x[:, 2, :2], y[:, 2, :2])
    assert not torch.allclose(x[:, 2, 2], y[:, 2, 2], atol=1e-4) and not torch.allclose(x[:, 3], y[:, 3], atol=1e-4)
    nats = -x.log_softmax(-1).gather(-1, a[..., None]).mean()
    assert torch.allclose(rq.loss(a, CLASSES), nats, atol=1e-5)


def test_level_heads_are_separate_products():
    heads, states = LevelHeads(8, D, K), torch.randn(2, 5, D, 8, generator=seeded())
    for level in range(D):
        assert torch.allclose(heads(states)[..., level, :], heads.one(states[..., level, :], level), atol=1e-5)


def test_flat_maskgit_knows_the_level_of_every_code():
    flat = made(FlatMaskGIT)
    x = flat.embed(codes().flatten(1)).unflatten(1, (L, D))
    assert torch.equal(x[1, 2, 1], flat.tables.weight[1, codes()[1, 2, 1]])
    assert torch.equal(flat.embed(torch.full((1, L * D), K))[0, 5], flat.hidden)
    out = flat.generate(CLASSES, seeded(), num_steps=4).unflatten(1, (L, D))
    assert out.shape == (3, L, D) and int(out.max()) < K


def test_softmax_heads_score_a_place_by_its_own_draws():
    heads, some = made(SoftmaxHeads), codes()
    hidden = torch.tensor([[0, 1, 2, 3]] * 3)
    found, score = SoftmaxHeads.propose(heads, some, hidden, CLASSES, None, 0.0, 1.0)
    logs = heads.logits(some, hidden, CLASSES).log_softmax(-1)
    assert torch.equal(found[:, 0], some[:, 0]) and torch.equal(found[:, 3], logs[:, 3].argmax(-1))
    assert torch.allclose(score[:, 2], logs[:, 2, 1:].max(-1).values.mean(-1), atol=1e-5) and (score[:, 0] == 0).all()


def test_levels_are_filled_in_order():
    heads, asked = made(SoftmaxHeads), []
    states = heads.states
    heads.states = lambda codes, hidden, classes: (asked.append(hidden.clone()), states(codes, hidden, classes))[1]
    by_level(heads, CLASSES, seeded(), num_steps=2)
    assert len(asked) == D * 2
    for level in range(D):
        first, second = asked[2 * level], asked[2 * level + 1]
        assert (first == D - level).all()
        assert set(second.flatten().tolist()) == {D - level, D - level - 1}


# -- counted work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", measure.SAMPLERS)
def test_forward_passes_are_what_is_run(name, monkeypatch):
    monkeypatch.setattr(measure, "SIZES", {**SIZES, "length": L})
    model, calls = measure.untrained(2)[name], []
    for part in model.modules():
        if type(part).__name__ == "Trunk":
            part.register_forward_hook(lambda *args: calls.append(1))
    measure.sample(name, model, CLASSES, seeded(), 3)
    assert len(calls) == measure.forward_passes(name, 2, 3, L)


def test_resgens_work_is_flat_in_depth_but_for_the_quantizer():
    def work(kind, depth, **options):
        torch.manual_seed(0)
        model = kind(measure.random_codebooks(depth), **measure.SIZES, **options).eval()
        name = {ResGen: "ResGen", FlatMaskGIT: "flat MaskGIT"}[kind]
        return counted_flops(lambda: measure.sample(name, model, CLASSES[:1], seeded()))

    quantizer = 2 * 16 * 256 * 8 * 8  # places x codes x dim, a level, 8 steps
    assert work(ResGen, 8) - work(ResGen, 2) == 6 * quantizer
    assert work(FlatMaskGIT, 8) > 3.5 * work(FlatMaskGIT, 2)


def test_projection_is_flat_for_resgen_and_grows_for_the_others():
    rows = measure.projection_rows()
    growth = {
        name: measure.spread_of_depth(rows, name, "ms", (2, 16))
        for name in ("ResGen", "flat MaskGIT", "RQ-Transformer", "level by level")
    }
    assert (
        growth["ResGen"] == 1
        and growth["level by level"] == 8
        and all(growth[n] > 1.5 for n in ("flat MaskGIT", "RQ-Transformer"))
    )
    one = measure.projected_costs(16)["RQ-Transformer"]
    assert sum(cost.bytes * count for cost, count in one) == pytest.approx(
        2 * 574e6 * (64 * 26 / 30 + 64 * 16 * 4 / 30)
    )
    assert (rows["upper_ms"] >= rows["ms"]).all()


def test_unknown_sampler_is_named():
    with pytest.raises(ValueError, match="unknown sampler 'x'; there are: RQ-Transformer"):
        measure.sample("x", made(ResGen), CLASSES)
