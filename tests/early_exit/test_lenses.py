"""Lenses and bridges: the closed form against least squares, packing, and what is charged."""
import numpy as np
import pytest
import torch

from frugal.core.depth import Affine, Stack, unit_rms
from frugal.core.lm import random_lm
from frugal.early_exit.bridges import ENTRIES, fit_bridges, load_bridges
from frugal.early_exit.held_out import fitting_pages, held_out_windows
from frugal.early_exit.lens_measure import bridge_rows, layer_rows
from frugal.early_exit.lenses import (EXITS, LogitLens, RidgeLens, fit_ridge_lens, load_ridge_lens, packed_maps,
                                      unpacked_maps)
from frugal.early_exit.ridge import SINKS, RidgeSums

LM = random_lm(1, num_layers=4)


def windows(count=12, length=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, length), generator=generator).tolist()


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_ridge_is_the_minimum_of_its_loss(penalty):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 7, generator=generator) + 1, torch.randn(200, 3, generator=generator)
    weight = torch.rand(200, generator=generator)
    sums = RidgeSums(7, 3)
    for part in (slice(0, 50), slice(50, 200)):                           # a stream gives what one batch gives
        sums.add(x[part], y[part], weight[part])
    found = sums.solve(penalty, normalised=False)
    damp = penalty * float((weight[:, None] * x.square()).sum(0).mean())
    rows = torch.cat([torch.cat([x, torch.ones(200, 1)], 1) * weight.sqrt()[:, None],
                      torch.cat([damp ** 0.5 * torch.eye(7), torch.zeros(7, 1)], 1)])
    targets = torch.cat([y * weight.sqrt()[:, None], torch.zeros(7, 3)])
    wanted = torch.linalg.lstsq(rows.double(), targets.double()).solution.float()
    assert torch.allclose(found.weight, wanted[:7].T, atol=1e-4) and torch.allclose(found.bias, wanted[7], atol=1e-4)


def test_too_few_rows_or_no_penalty():
    sums = RidgeSums(7, 3)
    sums.add(torch.randn(6, 7), torch.randn(6, 3))
    with pytest.raises(ValueError, match="6 rows for 7 inputs"):
        sums.solve()
    sums.add(torch.randn(6, 7), torch.randn(6, 3))
    with pytest.raises(ValueError, match="penalty 0"):
        sums.solve(0.0)


def test_a_fitted_lens_reads_more_than_the_head_alone():
    lens = fit_ridge_lens(LM, windows(40), (2, 3), penalty=1e-2)
    rows = {(r["lens"], r["exit"]): r for r in layer_rows(LM, lens, windows(6, seed=1), exits=(2, 3))}
    for e in (2, 3):
        assert rows["ridge_lens", e]["kl"] < rows["logit_lens", e]["kl"]


def fitted_with_sinks(lm, texts, e):
    """The fit with the first positions left in."""
    sums = RidgeSums(48, 48)
    for window in texts:
        hidden = lm.run(torch.tensor([window]), hidden=True, logits=False).hidden
        sums.add(hidden[e][0], hidden[-1][0])
    return sums.solve(1e-2, normalised=False)


def test_unnormalised_states_spoil_the_fit():
    lm = random_lm(1, num_layers=4)
    lm.weights["embed"][:4] *= 300                                        # a few tokens with huge states, as sinks are
    texts = [[0, 1, 2, 3] + w for w in windows(40)]
    good = fit_ridge_lens(lm, texts, (3,), penalty=1e-2)
    bad = RidgeLens({3: fitted_with_sinks(lm, texts, 3)})
    test = [[0, 1, 2, 3] + w for w in windows(6, seed=1)]
    kl = [next(r for r in layer_rows(lm, lens, test, exits=(3,)) if r["lens"] == "ridge_lens")["kl"] for lens in (good, bad)]
    assert kl[0] < 0.7 * kl[1]


def test_at_the_last_layer_a_lens_is_the_model():
    hidden = LM.run(ids := torch.tensor(windows(1)), hidden=True).hidden
    for lens in (LogitLens(), RidgeLens({})):
        assert torch.allclose(lens.logits(Stack(LM), hidden[4], 4), LM(ids), atol=1e-4)


def test_an_exact_map_gives_the_models_own_logits():
    ids = torch.tensor(windows(1))
    hidden = LM.run(ids, hidden=True).hidden
    identity = RidgeLens({3: Affine(torch.eye(48), torch.zeros(48))})
    got = identity.logits(Stack(LM), hidden[4], 3)                         # the last state itself, through the map's path
    assert torch.allclose(got, LM(ids), atol=1e-3)


def test_map_and_head_are_charged():
    stack = Stack(LM)
    RidgeLens({3: Affine(torch.eye(48), torch.zeros(48))}).logits(stack, torch.zeros(1, 2, 48), 3)
    assert (stack.work.map_tok, stack.work.head_tok) == (2, 2)
    assert stack.work.weight_bytes == 4 * (48 * 48 + LM.head.numel())


def test_packing_loses_little_and_comes_back():
    maps = {e: Affine(torch.randn(48, 48), torch.randn(48)) for e in (2, 10)}
    back = unpacked_maps(packed_maps(maps))
    assert list(back) == [2, 10]
    for e, affine in maps.items():
        step = affine.weight.abs().amax(1, keepdim=True) / 127
        assert ((back[e].weight - affine.weight).abs() <= 0.51 * step).all() and torch.equal(back[e].bias, affine.bias)


def test_a_bridge_foretells_more_than_the_mean_state():
    bridges = fit_bridges(LM, windows(40), (2, 3), penalty=1e-2)
    for e, bridge in bridges.items():
        states = [LM.run(torch.tensor([w]), hidden=True, logits=False).hidden for w in windows(4, seed=3)]
        x, wanted = (torch.cat([s[i][0, SINKS:] for s in states]) for i in (1, e))
        size = wanted.square().mean(-1)
        errors = [float(((got - wanted).square().mean(-1) / size).mean()) for got in (bridge(x), wanted.mean(0))]
        assert errors[0] < 0.7 * errors[1]
    rows = bridge_rows(LM, bridges, windows(2, seed=3))
    assert [(r["entry"], r["layers"], r["bridged"]) for r in rows] == [(2, 3, False), (2, 3, True), (3, 2, False), (3, 2, True)]


def test_unit_rms():
    x = torch.randn(3, 48) * 50
    assert torch.allclose(unit_rms(x), x / x.square().mean(-1, keepdim=True).sqrt(), atol=1e-5)


# -- what is stored -----------------------------------------------------------------------------------------------

def test_held_out_pages_are_not_fitted_on():
    class Letters:
        def encode(self, text):
            return [ord(c) for c in text]
    fitted = "\n".join(page.text for page in fitting_pages())
    found = held_out_windows(Letters(), 5, 200)
    assert len(found) == 5 and not any("".join(map(chr, w)) in fitted for w in found)
    with pytest.raises(ValueError, match="only .* held-out pages have"):
        held_out_windows(Letters(), 50, 100_000)


def test_the_stored_maps_are_those_promised():
    assert tuple(load_ridge_lens().maps) == EXITS and tuple(load_bridges()) == ENTRIES
    for maps in (load_ridge_lens().maps, load_bridges()):
        assert all(m.weight.shape == (576, 576) and torch.isfinite(m.weight).all() for m in maps.values())


@pytest.mark.model
def test_the_stored_lens_reads_what_its_card_says(smollm2):
    rows = layer_rows(smollm2, load_ridge_lens(), held_out_windows(smollm2.tokenizer, 2), exits=(21, 28))
    found = {(r["lens"], r["exit"]): r for r in rows}
    assert found["ridge_lens", 21]["agreement"] > 0.35 > found["logit_lens", 21]["agreement"]
    assert found["ridge_lens", 28]["agreement"] > 0.65 and found["ridge_lens", 28]["sure_right"] > 0.95
    assert np.isfinite([r["kl"] for r in rows]).all()
