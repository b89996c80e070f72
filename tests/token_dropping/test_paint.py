"""PAINT: sets against NumPy, the boost's invariants, off bit for bit, the contrast's limits, planted mistakes."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.edits import Edits, edited
from frugal.data.scenes import images_of, make_scene
from frugal.models.mini_vlm import random_vlm
from frugal.token_dropping import paint, steering
from frugal.token_dropping.paint import (AttentionBoost, Pai, Paint, TokenSets, boost_logits, head_strengths, head_visual_sensitivity,
                                         random_sets, select_local_tokens, select_summary_tokens, token_sets)
from frugal.token_dropping.steering import Greedy, contrast_logits, decode
from frugal.token_dropping.steering_measure import WORDS, captions, prompt_ids


@pytest.fixture(scope="module")
def vlm():
    return random_vlm(0, num_layers=5)


@pytest.fixture(scope="module")
def seen(vlm):
    return vlm.see(images_of([make_scene(i) for i in range(3)]))


PROMPT = prompt_ids(["describe :"] * 3)


def logits_along(vlm, seen, method, steps=3):
    """Logits of the prompt and of a few fixed tokens after it, (steps + 1, B, V), and the cache."""
    begun = method.begin(vlm, seen, PROMPT)
    out = [begun.step(PROMPT)[0]]
    for token in range(40, 40 + steps):
        out.append(begun.step(torch.full((3, 1), token))[0])
    return torch.stack(out), begun.cache


# --- sets ----------------------------------------------------------------------------------------------------------


@given(values=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=40))
def test_summary_tokens_are_numpys_upper_outliers(values):
    array = np.array(values, np.float32)
    low, high = np.quantile(array, [0.25, 0.75])
    found = select_summary_tokens(torch.tensor(values)[None])[0].numpy()
    near = np.isclose(array, high + 1.5 * (high - low), atol=1e-6)              # a value on the limit may fall either way
    assert np.array_equal(found[~near], (array > high + 1.5 * (high - low))[~near])


@settings(max_examples=25)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.1, 0.25, 1.0]))
def test_sets_are_disjoint_and_no_larger_than_their_share(seed, share):
    attention = torch.rand(2, 3, 64, generator=torch.Generator().manual_seed(seed)) ** 8
    summary = select_summary_tokens(attention)
    local = select_local_tokens(attention, summary, share)
    assert not (local & summary).any() and (local.sum(-1) <= int(share * 64)).all()
    best = attention.topk(max(1, int(share * 64)), -1).indices
    if int(share * 64):
        assert torch.equal((local | summary).gather(-1, best), torch.ones_like(best, dtype=torch.bool))


def test_sets_of_scenes_follow_the_encoders_maps(vlm, seen):
    sets, grid = token_sets(seen.features), seen.grid
    assert sets.local.shape == sets.summary.shape == (3, grid.num_tokens)
    with torch.no_grad():
        from frugal.data.scenes import to_views
        one = vlm.clip.encode(to_views(images_of([make_scene(1)]))[0])             # scene 1 alone, its views in front
    late = one.cls_attn[-2].sum(1)
    assert torch.equal(sets.summary[1].view(grid.num_views, -1), select_summary_tokens(late))
    first = one.cls_attn[0].sum(1)
    for view in range(grid.num_views):
        top = set(first[view].topk(grid.tokens_per_view // 4).indices.tolist()) - set(select_summary_tokens(late)[view].nonzero().flatten().tolist())
        own = sets.local[1].view(grid.num_views, -1)[view]
        assert set(own.nonzero().flatten().tolist()) == top
    received = one.patch_attn.sum((1, 2))
    wide = token_sets(seen.features, 0.0, 1 / grid.tokens_per_view)                # one patch a view, by attention received
    for view in range(grid.num_views):
        own = wide.local[1].view(grid.num_views, -1)[view].nonzero().flatten().tolist()
        assert own in ([int(received[view].argmax())], [])                         # [] where that one is a summary token
    assert not (wide.local & wide.summary).any()


def test_random_sets_have_equal_counts_and_are_disjoint():
    sets = TokenSets(torch.rand(4, 80) < 0.3, torch.zeros(4, 80, dtype=torch.bool))
    sets = TokenSets(sets.local, (torch.rand(4, 80) < 0.1) & ~sets.local)
    drawn = random_sets(sets, 3)
    assert torch.equal(drawn.local.sum(-1), sets.local.sum(-1)) and torch.equal(drawn.summary.sum(-1), sets.summary.sum(-1))
    assert not (drawn.local & drawn.summary).any() and not torch.equal(drawn.local, sets.local)
    assert torch.equal(random_sets(sets, 3).local, drawn.local)


# --- boost ---------------------------------------------------------------------------------------------------------


def test_boost_worked_example():
    A = torch.tensor([1.0, -2.0, 0.0, -0.5])
    assert boost_logits(A, torch.tensor([0.5, 0.5, 0.5, 0.0])).tolist() == [1.5, -1.0, 0.0, -0.5]
    assert torch.equal(boost_logits(A, 0.0), A)


@given(seed=st.integers(0, 999), strengths=st.lists(st.floats(0, 2), min_size=2, max_size=4))
def test_mass_on_the_set_grows_with_alpha(seed, strengths):
    generator = torch.Generator().manual_seed(seed)
    logits, chosen = torch.randn(2, 3, 1, 12, generator=generator) * 3, torch.rand(2, 8, generator=generator) < 0.5
    none = torch.zeros_like(chosen)
    mass = []
    for alpha in sorted(strengths):
        edit = AttentionBoost(TokenSets(chosen, none), torch.full((1, 3), alpha), torch.zeros(1, 3))
        probs = edit(0, logits).softmax(-1)[..., :8]
        mass.append((probs * chosen[:, None, None]).sum(-1))
    assert all((later >= earlier - 1e-5).all() for earlier, later in zip(mass, mass[1:]))


def test_head_rules():
    s = torch.tensor([[0.2, 0.4, 0.1, 0.3]])
    assert head_strengths(0.6, s, "uniform").tolist() == [[pytest.approx(0.6)] * 4]
    assert torch.allclose(head_strengths(0.6, s, "proportional"), torch.tensor([[0.3, 0.6, 0.15, 0.45]]))
    assert torch.allclose(head_strengths(0.6, s, "top_half"), torch.tensor([[0.0, 0.6, 0.0, 0.6]]))


@pytest.mark.parametrize("rule", paint.RULES)
def test_each_head_gets_its_own_strength(rule):
    s = torch.rand(2, 4)
    every = torch.ones(1, 5, dtype=torch.bool)
    edit = AttentionBoost(TokenSets(every, ~every), head_strengths(1.0, s, rule), torch.zeros(2, 4))
    logits = torch.randn(1, 4, 1, 7)
    for head in range(4):
        want = logits[0, head, 0, :5] + float(head_strengths(1.0, s, rule)[1, head]) * logits[0, head, 0, :5].abs()
        assert torch.allclose(edit(1, logits)[0, head, 0, :5], want) and torch.equal(edit(1, logits)[..., 5:], logits[..., 5:])


# --- in the decoder ------------------------------------------------------------------------------------------------


def test_zero_strength_is_the_unmodified_model_bit_for_bit(vlm, seen):
    plain, cache = logits_along(vlm, seen, Greedy())
    off, off_cache = logits_along(vlm, seen, Paint(alpha=0, beta=0, gamma=1))
    assert torch.equal(plain, off)
    assert all(torch.equal(a, b) for a, b in zip(cache.keys, off_cache.keys, strict=True))
    assert Paint(alpha=0, beta=0, gamma=1).begin(vlm, seen, PROMPT).lm is vlm.lm


def test_a_boost_moves_the_logits_a_little_more_with_more_strength(vlm, seen):
    plain, _ = logits_along(vlm, seen, Greedy())
    moved = [float((logits_along(vlm, seen, Paint(alpha=a, beta=a, gamma=1))[0] - plain).abs().max()) for a in (1e-4, 0.1, 1.0)]
    assert 0 < moved[0] < moved[1] < moved[2] and moved[0] < 0.01


def test_only_the_newest_row_of_the_prompt_pass_is_boosted(vlm, seen):
    """Keys of earlier prompt tokens stay, to the rounding of two ways to sum; the last token's change above the first boosted layer."""
    _, plain = logits_along(vlm, seen, Greedy(), steps=0)
    _, boosted = logits_along(vlm, seen, Paint(gamma=1), steps=0)
    last = seen.grid.num_tokens + PROMPT.shape[1] - 1
    for layer, (a, b) in enumerate(zip(plain.keys, boosted.keys, strict=True)):
        assert torch.allclose(a[:, :, :last], b[:, :, :last], atol=1e-4)
        assert torch.allclose(a[:, :, last], b[:, :, last], atol=1e-5) == (layer <= Paint().first_layer)


def test_the_visual_prefill_is_not_boosted(vlm, seen):
    prefix = vlm.prefill(seen.embeds)
    shared, _ = logits_along(vlm, seen, Paint())
    begun = Paint().begin(vlm, seen, PROMPT, prefix)
    assert torch.equal(begun.step(PROMPT)[0], shared[0])
    assert int(prefix.num_held()[0]) == seen.grid.num_tokens                      # the shared prefix is left as it was


def test_the_contrast_pass_is_not_boosted_and_sees_no_image(vlm, seen):
    begun = Paint().begin(vlm, seen, PROMPT)
    begun.step(PROMPT)
    assert begun.contrast.lm is vlm.lm and begun.contrast.cache.num_held().tolist() == [PROMPT.shape[1]] * 3
    boosted, _ = logits_along(vlm, seen, Paint(gamma=1))
    text = vlm.lm.run(PROMPT, vlm.lm.new_cache(3), last_only=True).logits[:, -1]
    both, _ = logits_along(vlm, seen, Paint())
    assert torch.allclose(both[0], contrast_logits(boosted[0], text), atol=1e-5)


def test_contrast_limits():
    image, text = torch.randn(2, 9), torch.randn(2, 9)
    assert torch.allclose(contrast_logits(image, text, gamma=1, cut=0), image.log_softmax(-1), atol=1e-5)
    assert torch.allclose(contrast_logits(image, text, gamma=0, cut=0), text.log_softmax(-1), atol=1e-5)
    p = image.softmax(-1)
    kept = contrast_logits(image, text).isfinite()
    assert torch.equal(kept, p >= 0.1 * p.amax(-1, keepdim=True) * (1 - 1e-6))
    by_hand = 1.1 * (image.log_softmax(-1) - text.log_softmax(-1)) + text.log_softmax(-1)
    assert torch.allclose(contrast_logits(image, text)[kept], by_hand[kept], atol=1e-5)


def test_pai_lifts_every_visual_token(vlm, seen):
    sets = Pai().sets(seen)
    assert sets.local.all() and not sets.summary.any()
    assert Pai().boost(seen, *_shape(vlm)).alpha[2:].unique().tolist() == [0.5]


def _shape(vlm):
    return vlm.lm.config.num_layers, vlm.lm.config.num_heads


def test_the_control_of_equal_count(vlm, seen):
    chosen, drawn = Paint().sets(seen), Paint(target="random").sets(seen)
    assert torch.equal(chosen.local.sum(-1), drawn.local.sum(-1)) and not torch.equal(chosen.local, drawn.local)


def test_head_sensitivity_is_the_mass_that_a_boost_of_nothing_sees(vlm, seen):
    found = head_visual_sensitivity(vlm, seen, PROMPT, 4, WORDS.eos_id)
    assert found.shape == _shape(vlm) and (found > 0).all() and (found <= 1 + 1e-5).all()
    first = {}
    lm = edited(vlm.lm, Edits(watch=lambda layer, probs: first.__setitem__(layer, probs)))
    lm.run(PROMPT, vlm.prefill(seen.embeds))
    one = head_visual_sensitivity(vlm, seen, PROMPT, 1, WORDS.eos_id)
    want = torch.stack([first[i][:, :, -1, :seen.grid.num_tokens].sum(-1).mean(0) for i in range(_shape(vlm)[0])])
    assert torch.allclose(one, want, atol=1e-5)
    shaped, _ = logits_along(vlm, seen, Paint(head_rule="proportional", sensitivity=found, gamma=1))
    assert not torch.allclose(shaped, logits_along(vlm, seen, Paint(gamma=1))[0], atol=1e-4)


# --- decoding ------------------------------------------------------------------------------------------------------


def test_decoding_is_the_models_own_greedy_answer(vlm, seen):
    said = decode(Greedy().begin(vlm, seen, PROMPT), PROMPT, 5, WORDS.eos_id)
    for b in range(3):
        tokens = PROMPT[b].tolist()
        for number in range(5):
            logits = vlm.logits(seen.embeds[b:b + 1], torch.tensor([tokens]))[0, -1]
            picked = int(logits.argmax())
            if picked == WORDS.eos_id:
                break
            assert picked == said[b][number]
            tokens.append(picked)
        assert said[b] == tokens[PROMPT.shape[1]:]


def test_forced_length_holds_the_end_back(vlm, seen):
    bias = vlm.lm.weights["embed"].clone()
    shown = []
    said = decode(Greedy().begin(vlm, seen, PROMPT), PROMPT, 6, WORDS.eos_id, hold_end=[6, 3, 0], on_step=lambda s: shown.append(s.logits))
    assert len(said[0]) == 6 and len(said[1]) >= 3 and WORDS.eos_id not in said[0]
    assert torch.isinf(shown[0][:, WORDS.eos_id]).tolist() == [True, True, False]
    assert torch.equal(vlm.lm.weights["embed"], bias)
    for method in (Paint(cut=1.0), Pai(), Paint()):                               # cut 1: the likeliest word alone survives
        said = decode(method.begin(vlm, seen, PROMPT), PROMPT, 6, WORDS.eos_id, hold_end=[6, 6, 6])
        assert [len(row) for row in said] == [6, 6, 6]
    with pytest.raises(ValueError, match="hold_end asks for 7"):
        decode(Greedy().begin(vlm, seen, PROMPT), PROMPT, 6, WORDS.eos_id, hold_end=[7, 0, 0])


def test_a_batch_says_what_each_scene_says_alone(vlm):
    scenes = [make_scene(i) for i in range(4)]
    methods = {"greedy": Greedy(), "paint": Paint(), "pai": Pai(alpha=0.2)}
    together = captions(vlm, scenes, methods, max_new_tokens=5)
    alone = captions(vlm, scenes, methods, max_new_tokens=5, batch=1)
    assert together == alone and list(together) == list(methods)


@pytest.mark.parametrize("options, message", [
    ({"head_rule": "loudest"}, "head_rule must be one of"), ({"target": "some"}, "target must be one of"), ({"alpha": -0.1}, "alpha must be 0"),
    ({"beta": float("nan")}, "beta must be 0"), ({"local_share": 1.5}, "local_share must be a share"),
    ({"head_rule": "top_half"}, "needs sensitivity")])
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        Paint(**options)


def test_sensitivity_of_another_model_is_refused(vlm, seen):
    with pytest.raises(ValueError, match="sensitivity has shape"):
        Paint(head_rule="top_half", sensitivity=torch.ones(2, 2)).begin(vlm, seen, PROMPT)


# --- wrong versions ------------------------------------------------------------------------------------------------


def rejected(monkeypatch, module, name, wrong, test, *arguments) -> bool:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, wrong)
        try:
            test(*arguments)
        except AssertionError:
            return True
    return False


def test_planted_mistakes_are_seen(monkeypatch, vlm, seen):
    def multiplies(logits, strength):
        return logits * (1 + strength)
    assert rejected(monkeypatch, paint, "boost_logits", multiplies, test_mass_on_the_set_grows_with_alpha)

    def every_row(**options):
        return Edits(**options, rows=None)
    assert rejected(monkeypatch, paint, "Edits", every_row, test_only_the_newest_row_of_the_prompt_pass_is_boosted, vlm, seen)

    def boosted_prefill(vlm, seen, prefix, lm=None):
        return vlm.prefill(seen.embeds, lm=edited(vlm.lm, Edits(logits=lambda i, x: x + 0.5 * x.abs(), rows=None)))
    assert rejected(monkeypatch, paint, "started", boosted_prefill, test_only_the_newest_row_of_the_prompt_pass_is_boosted, vlm, seen)

    class BoostedText(steering.NoImageContrast):
        def __init__(self, lm, batch, gamma, cut):
            super().__init__(edited(lm, Edits(logits=lambda i, x: x + 0.5 * x.abs())), batch, gamma, cut)
    assert rejected(monkeypatch, paint, "NoImageContrast", BoostedText, test_the_contrast_pass_is_not_boosted_and_sees_no_image, vlm, seen)

    def overlapping(attention, summary, share=0.25):
        return select_local_tokens(attention, torch.zeros_like(summary), share)
    assert rejected(monkeypatch, paint, "select_local_tokens", overlapping, test_sets_of_scenes_follow_the_encoders_maps, vlm, seen)
