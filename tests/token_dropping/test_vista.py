"""VISTA: the step's invariants, the vector's zero, early logits' limits, off bit for bit, ranks, planted mistakes."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frugal.data.scenes import NAMES, images_of, make_scene
from frugal.models.mini_vlm import random_vlm
from frugal.token_dropping import rank_trace, vista
from frugal.token_dropping.steering import Greedy
from frugal.token_dropping.steering_measure import WORDS, prompt_ids
from frugal.token_dropping.vista import (Vista, last_token_states, random_vectors, self_logits_augmentation, sla_layers, steer,
                                         visual_steering_vector)


@pytest.fixture(scope="module")
def vlm():
    return random_vlm(0)


@pytest.fixture(scope="module")
def seen(vlm):
    return vlm.see(images_of([make_scene(i) for i in range(3)]))


PROMPT = prompt_ids(["describe :"] * 3)
OFF = Vista(strength=0, alpha=0)


def logits_along(vlm, seen, method, steps=3, prefix=None):
    begun = method.begin(vlm, seen, PROMPT, prefix)
    out = [begun.step(PROMPT)[0]]
    for token in range(40, 40 + steps):
        out.append(begun.step(torch.full((3, 1), token))[0])
    return torch.stack(out)


# --- the step ------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), strength=st.floats(0, 3), scale=st.floats(0.01, 50))
def test_a_step_keeps_the_length_and_turns_towards_the_vector(seed, strength, scale):
    generator = torch.Generator().manual_seed(seed)
    x, v = scale * torch.randn(4, 5, 16, generator=generator), torch.randn(4, 1, 16, generator=generator)
    y = steer(x, v, strength)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=1e-5)
    before, after = (torch.cosine_similarity(a, v.expand_as(a), dim=-1) for a in (x, y))
    assert (after >= before - 1e-5).all()


def test_step_worked_example():
    """x = (3, 4), v along y, lam 0.5: cos is 0.8, no gate; (0.6, 0.8 + 0.5) brought back to length 5."""
    want = torch.tensor([0.6, 1.3]) * 5 / (0.6**2 + 1.3**2) ** 0.5
    assert torch.allclose(steer(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 7.0]), 0.5), want)
    # pointing away: cos(x, -v) = 1, so the push is twice 0.3 and x shrinks towards the origin before the length returns
    assert torch.allclose(steer(torch.tensor([0.0, -2.0]), torch.tensor([0.0, 1.0]), 0.3), torch.tensor([0.0, -2.0]))
    assert torch.allclose(steer(torch.tensor([0.0, -2.0]), torch.tensor([0.0, 1.0]), 0.6), torch.tensor([0.0, 2.0]))


def test_a_zero_vector_changes_nothing():
    x = torch.randn(3, 8)
    assert torch.allclose(steer(x, torch.zeros(8), 0.7), x, atol=1e-6)


# --- the vector ----------------------------------------------------------------------------------------------------


def test_no_image_in_both_runs_gives_a_zero_vector(vlm):
    v = visual_steering_vector(vlm.lm, PROMPT, None, None)
    assert v.shape == (3, vlm.lm.config.num_layers, vlm.lm.config.hidden_size) and (v == 0).all()


def test_the_vector_is_the_difference_at_the_last_prompt_token(vlm, seen):
    v = Vista().vectors(vlm, seen, PROMPT)
    embeds = torch.cat([seen.embeds, vlm.lm.weights["embed"][PROMPT]], dim=1)
    with_image = vlm.lm.run(None, embeds=embeds, hidden=True).hidden[1:]
    without = vlm.lm.run(PROMPT, hidden=True).hidden[1:]
    for layer in range(vlm.lm.config.num_layers):
        assert torch.allclose(v[:, layer], with_image[layer][:, -1] - without[layer][:, -1], atol=1e-3)


def test_a_blank_image_is_another_vector(vlm, seen):
    none, blank = (Vista(negative=kind).vectors(vlm, seen, PROMPT) for kind in ("none", "blank"))
    assert not torch.allclose(none, blank, atol=1e-3)


def test_the_random_control_has_the_same_lengths(vlm, seen):
    own, drawn = Vista().vectors(vlm, seen, PROMPT), Vista(vector="random").vectors(vlm, seen, PROMPT)
    assert torch.allclose(own.norm(dim=-1), drawn.norm(dim=-1), rtol=1e-4)
    assert torch.cosine_similarity(own, drawn, dim=-1).abs().mean() < 0.5
    assert torch.equal(drawn, random_vectors(own, 0))


# --- early logits --------------------------------------------------------------------------------------------------


def test_layers_of_the_paper_and_of_the_miniature():
    assert sla_layers(8) == (5, 6) and sla_layers(4) == (2,) and sla_layers(1) == (0,)
    assert 30 in sla_layers(32) and 31 not in sla_layers(32)


def test_the_last_layer_alone_gives_plain_logits(vlm, seen):
    out = vlm.lm.run(PROMPT, vlm.prefill(seen.embeds), hidden=True, last_only=True)
    states, logits = [state[:, -1] for state in out.hidden], out.logits[:, -1]
    last = vlm.lm.config.num_layers - 1
    for alpha in (0.3, 1.0):
        assert torch.allclose(self_logits_augmentation(vlm.lm, logits, states, (last,), alpha), logits, atol=1e-4)
    assert not torch.allclose(self_logits_augmentation(vlm.lm, logits, states, (last,), 0.3, norm=False), logits, atol=1e-2)
    mixed = self_logits_augmentation(vlm.lm, logits, states, (0,), 0.25)
    assert torch.allclose(mixed, 0.75 * logits + 0.25 * vlm.lm.unembed(states[1][None])[0], atol=1e-4)


# --- in the decoder ------------------------------------------------------------------------------------------------


def test_off_is_the_unmodified_model_bit_for_bit(vlm, seen):
    assert torch.equal(logits_along(vlm, seen, OFF), logits_along(vlm, seen, Greedy()))
    assert OFF.begin(vlm, seen, PROMPT).lm is vlm.lm


@pytest.mark.parametrize("site", vista.SITES)
@pytest.mark.parametrize("reach", vista.REACHES)
def test_a_small_push_moves_the_logits_a_little(vlm, seen, site, reach):
    plain = logits_along(vlm, seen, Greedy())
    moved = [float((logits_along(vlm, seen, Vista(strength, 0, site, reach)) - plain).abs().max()) for strength in (1e-5, 0.03, 0.5)]
    assert 0 < moved[0] < moved[1] < moved[2] and moved[0] < 0.02


def test_the_text_reach_leaves_the_visual_cache_alone(vlm, seen):
    plain = vlm.prefill(seen.embeds)
    text, every = (Vista(reach=reach).begin(vlm, seen, PROMPT).cache for reach in ("text", "all"))
    assert all(torch.equal(a, b) for a, b in zip(text.keys, plain.keys, strict=True))
    assert not torch.allclose(every.keys[1], plain.keys[1], atol=1e-4)


@pytest.mark.parametrize("site", vista.SITES)
def test_lengths_are_kept_where_the_edit_acts(vlm, seen, site):
    begun, lengths = Vista(0.5, 0, site, "text").begin(vlm, seen, PROMPT), []
    hook = getattr(begun.lm.edits, site)

    def compare(layer, x):
        y = hook(layer, x)
        lengths.append((x.norm(dim=-1), y.norm(dim=-1), float((x - y).abs().max())))
        return y
    from frugal.core.edits import Edits, edited
    edited(vlm.lm, Edits(**{site: compare})).run(PROMPT, vlm.prefill(seen.embeds))
    assert len(lengths) == vlm.lm.config.num_layers
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) and moved > 1e-3 for a, b, moved in lengths)


def test_a_shared_prefix_changes_nothing(vlm, seen):
    prefix = vlm.prefill(seen.embeds)
    for reach in vista.REACHES:
        method = Vista(reach=reach)
        assert torch.equal(logits_along(vlm, seen, method, prefix=prefix), logits_along(vlm, seen, method))
    assert int(prefix.num_held()[0]) == seen.grid.num_tokens


@pytest.mark.parametrize("options, message", [
    ({"site": "head"}, "site must be one of"), ({"reach": "prompt"}, "reach must be"), ({"vector": "mean"}, "vector must be"),
    ({"negative": "noise"}, "negative must be"), ({"strength": -1.0}, "strength must be 0"), ({"alpha": 1.2}, "alpha must be a share")])
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        Vista(**options)


def test_layers_outside_the_decoder_are_refused(vlm, seen):
    with pytest.raises(ValueError, match="SLA must be in"):
        Vista(layers=(99,)).begin(vlm, seen, PROMPT)


# --- ranks ---------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), chosen=st.sets(st.integers(0, 19), min_size=1, max_size=5))
def test_ranks_follow_sorting(seed, chosen):
    logits = torch.randn(20, generator=torch.Generator().manual_seed(seed))
    order = sorted(range(20), key=lambda i: -float(logits[i]))
    assert rank_trace.rank_of(sorted(chosen), logits) == pytest.approx(sum(order.index(i) + 1 for i in chosen) / len(chosen))


def test_sets_of_a_caption():
    fox, owl, car, bus = (WORDS.ids[name] for name in ("fox", "owl", "train", "bus"))
    sets = rank_trace.name_sets([fox, car], [fox, fox, owl], step=1)
    assert sets["decoded true"] == [fox] and sets["hidden true"] == [owl] and sets["hallucinated"] == [car]
    assert sets["true, still to come"] == [] and len(sets["absent"]) == len(NAMES) - 3 and bus in sets["absent"]
    assert rank_trace.name_sets([fox, car], [fox], step=0)["true, still to come"] == [fox]


def test_the_lens_at_the_last_layer_ranks_the_real_logits(vlm, seen):
    prefix = vlm.prefill(seen.embeds)
    found = rank_trace.trace(vlm, seen, PROMPT, prefix=prefix)
    logits = Greedy().begin(vlm, seen, PROMPT, prefix).step(PROMPT)[0]
    assert torch.equal(found.ranks[0, :, -1].argmin(-1), logits.argmax(-1))
    assert found.ranks.shape[1:] == (3, vlm.lm.config.num_layers, vlm.lm.config.vocab_size)
    first = [row[0] if row else WORDS.eos_id for row in found.said]
    assert found.ranks[0, range(3), -1, first].tolist() == [1, 1, 1]


def rows_of(ranks, said, there):
    """Rank rows of a made-up trace: ranks (steps, L, V) of one scene, said twice over so that the halves are alike."""
    both = torch.stack([ranks, ranks], dim=1)
    return rank_trace.rank_rows(rank_trace.Trace(both, torch.zeros(len(ranks), 2, ranks.shape[-1]), [said, said]), [there, there])


def test_findings_on_a_made_up_trace():
    """Two layers, three steps: a hidden name falls from rank 2 to 6, and stands 3 places better one layer early."""
    size, (fox, owl) = len(WORDS.ids), (WORDS.ids["fox"], WORDS.ids["owl"])
    ranks = torch.full((3, 2, size), 50)
    ranks[:, 1, owl] = torch.tensor([2, 4, 6])
    ranks[:, 0, owl] = ranks[:, 1, owl] - 3
    ranks[:, :, fox] = 1
    ranks[:, 1, fox] = 4
    rows = rows_of(ranks, [fox, fox], [fox, owl])
    assert rank_trace.rank_loss(rows, "hidden true").value == 2                     # step 2 only chooses the end
    assert rank_trace.early_peak(rows) == (rank_trace.Interval(3.0, 3.0, 3.0), 0)
    assert rank_trace.hidden_above_absent(rows).value == 1
    by_layer = rank_trace.mean_ranks(rows, "layer")
    assert by_layer[(by_layer.set == "hidden true") & (by_layer.layer == 1)]["rank"].tolist() == [4]
    by_step = rank_trace.mean_ranks(rows, "step")
    assert by_step[by_step.set == "hidden true"]["rank"].tolist() == [2, 4, 6]
    with pytest.raises(ValueError, match="by must be"):
        rank_trace.mean_ranks(rows, "head")


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
    def mean_over_prompt(lm, prompt, cache=None):
        return torch.stack([state.mean(1) for state in lm.run(prompt, cache, hidden=True, logits=False).hidden[1:]], dim=1)
    assert rejected(monkeypatch, vista, "last_token_states", mean_over_prompt, test_the_vector_is_the_difference_at_the_last_prompt_token,
                    vlm, seen)
    assert last_token_states(vlm.lm, PROMPT).shape == mean_over_prompt(vlm.lm, PROMPT).shape

    def no_norm(x, v, strength):
        return x + strength * x.norm(dim=-1, keepdim=True) * v / v.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    assert rejected(monkeypatch, vista, "steer", no_norm, test_lengths_are_kept_where_the_edit_acts, vlm, seen, "mlp")

    def without_the_gate(x, v, strength):
        return x.norm(dim=-1, keepdim=True) * vista._unit(vista._unit(x) + strength * vista._unit(v))
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "steer", without_the_gate)
        with pytest.raises(AssertionError):
            test_step_worked_example()

    def before_the_norm(lm, logits, states, layers, alpha, norm=True):
        return (1 - alpha) * logits + alpha * torch.stack([states[layer] for layer in layers]).mean(0) @ lm.head.T
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "self_logits_augmentation", before_the_norm)
        with pytest.raises(AssertionError):
            test_the_last_layer_alone_gives_plain_logits(vlm, seen)
