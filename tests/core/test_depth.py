"""The stack runs what it is told and counts what ran; strict caches refuse to read what nobody wrote."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.depth import EXECUTED, FILLED, Affine, Stack, checked_exit, checked_layers, unit_rms
from frugal.core.depth_decode import FullDepth, PlannedDepth, blocks, decode
from frugal.core.kvcache import MissingKeys
from frugal.core.lm import random_lm
from frugal.core.measure import counted_flops


def tokens(batch, count, seed=0):
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(seed))


class Planned(PlannedDepth):
    """Layer lists by index, for tests: plan[-1] for the prompt."""
    def __init__(self, plan):
        self.plan = plan

    def layers(self, index, num_layers):
        return self.plan[index]


@pytest.mark.parametrize("cuts", [[4], [1, 3], [1, 1, 1, 1]])
def test_blocks_of_layers_are_the_whole_model(cuts):
    lm, ids = random_lm(num_layers=4), tokens(2, 7)
    stack = Stack(lm, batch=2)
    for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:]):
        x, first = stack.embed(part), 0
        for size in cuts:
            x = stack.run(x, range(first, first + size))
            first += size
        stack.advance(part.shape[1])
    assert torch.allclose(stack.logits(x), lm(ids)[:, -1:], atol=1e-5)


# -- the guard ----------------------------------------------------------------------------------------------------

def test_a_missing_key_is_named():
    lm = random_lm(num_layers=3)
    cache = lm.new_cache(2, strict=True)
    lm.run(tokens(2, 4), cache)
    lm.run(tokens(2, 1), cache, layers=[0, 2])
    with pytest.raises(MissingKeys, match=r"layer 1, sequence 0: position 4 \(1 in all\) was never written"):
        lm.run(tokens(2, 1), cache)


def test_without_the_guard_nobody_notices():
    lm = random_lm(num_layers=3)
    cache = lm.new_cache()
    lm.run(tokens(1, 4), cache, layers=[0, 2])
    assert torch.isfinite(lm(tokens(1, 1), cache)).all()                   # wrong, in silence: this is why there is one


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=2, max_size=6))
def test_the_guard_raises_exactly_when_a_needed_cell_is_missing(plan):
    lm = random_lm(num_layers=4)
    stack, needed_is_there = Stack(lm), True
    for index, layers in enumerate(plan):
        if any(i not in earlier for earlier in plan[:index] for i in layers):
            needed_is_there = False
            with pytest.raises(MissingKeys):
                stack.run(stack.embed(tokens(1, 1)), sorted(layers))
            break
        stack.run(stack.embed(tokens(1, 1)), sorted(layers))
        stack.advance()
    if needed_is_there:
        expected = np.array([[i in layers for layers in plan] for i in range(4)])
        assert (stack.cells() == expected).all()


def test_the_guard_holds_in_a_ragged_batch_and_survives_selection():
    lm = random_lm(num_layers=2)
    caches = [lm.new_cache(strict=True) for _ in range(2)]
    lm(tokens(1, 3), caches[0])
    lm.run(tokens(1, 5), caches[1], layers=[0])
    batch = type(caches[0]).stack(caches).select([1, 0])
    with pytest.raises(MissingKeys, match="layer 1, sequence 0: position 0"):
        lm(tokens(2, 1), batch)


def test_writing_a_cell_twice_is_refused():
    lm = random_lm()
    stack = Stack(lm)
    x = stack.embed(tokens(1, 2))
    stack.run(x, [0])
    with pytest.raises(MissingKeys, match="position 0 is written already"):
        stack.run(x, [0])


# -- filling keys -------------------------------------------------------------------------------------------------

def test_filled_keys_are_those_the_layer_itself_would_write():
    lm, ids = random_lm(num_layers=3), tokens(2, 6)
    whole = lm.run(ids, cache := lm.new_cache(2), hidden=True)
    stack = Stack(lm, batch=2)
    for i in range(3):
        stack.fill(whole.hidden[i], [i])
    for i in range(3):
        assert torch.allclose(stack.cache.keys[i][:, :, :6], cache.keys[i][:, :, :6], atol=1e-5)
        assert torch.allclose(stack.cache.values[i][:, :, :6], cache.values[i][:, :, :6], atol=1e-5)
    assert (stack.cells(1) == FILLED).all()


def test_a_filled_cell_may_be_attended_to():
    lm, stack = random_lm(num_layers=2), Stack(random_lm(num_layers=2))
    x = stack.run(stack.embed(tokens(1, 3)), [0])
    stack.fill(x, [1])
    stack.advance(3)
    out = stack.run(stack.embed(tokens(1, 1, 1)), [0, 1])
    assert out.shape == (1, 1, lm.config.hidden_size)
    assert stack.cells().tolist() == [[EXECUTED] * 4, [FILLED] * 3 + [EXECUTED]]


# -- counters -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layers", [[0, 1, 2], [0, 2], [1]])
def test_counted_flops_are_torchs(layers):
    lm = random_lm(num_layers=3)
    stack = Stack(lm)
    lm.run(tokens(1, 9), stack.cache)
    x = stack.embed(tokens(1, 1))
    found = counted_flops(lambda: stack.logits(stack.run(x, layers)))
    attention = 4 * lm.config.num_heads * lm.config.head_dim * 10 * len(layers)
    assert stack.work.flops in (found, found + attention)         # torch does not see the compiled attention loop


def test_weights_are_read_once_a_call_whatever_the_batch():
    lm = random_lm(num_layers=3)
    one, four = Stack(lm, batch=1), Stack(lm, batch=4)
    for stack in (one, four):
        stack.logits(stack.run(stack.embed(tokens(stack.batch, 1)), [0, 1, 2]))
    body = lm.num_bytes - lm.weights["norm"].numel() * 4                # the final scale is not counted; the head is tied
    assert one.work.weight_bytes == four.work.weight_bytes == body
    assert four.work.flops == 4 * one.work.flops and four.work.kv_bytes == 4 * one.work.kv_bytes
    assert (one.work + four.work).layer_tok == 15


def test_an_affine_map_is_charged_and_normalises():
    lm = random_lm()
    stack, x = Stack(lm), torch.randn(1, 2, 48)
    affine = Affine(torch.eye(48), torch.zeros(48))
    assert torch.allclose(stack.map(x, affine), x / x.square().mean(-1, keepdim=True).sqrt(), atol=1e-3)
    assert (stack.work.map_calls, stack.work.map_tok, stack.work.flops) == (1, 2, 2 * 2 * 48 * 48)
    assert torch.allclose(Affine(2 * torch.eye(48), torch.ones(48), normalised=False)(x), 2 * x + 1, atol=1e-5)
    assert torch.allclose(unit_rms(x).square().mean(-1), torch.ones(1, 2), atol=1e-3)


# -- the decode loop ----------------------------------------------------------------------------------------------

def test_full_depth_is_plain_greedy_decoding_also_as_a_batch():
    lm = random_lm(num_layers=3)
    prompts = [tokens(1, n, n)[0].tolist() for n in (4, 1, 9)]
    run = decode(lm, prompts, FullDepth(), 8)
    for prompt, found in zip(prompts, run.tokens):
        text = list(prompt)
        for _ in range(8):
            text.append(int(lm(torch.tensor([text]))[0, -1].argmax()))
        assert found == text[len(prompt):]
    assert run.mean_layers == 3 and len(run.step_work) == len(run.step_s) == 7


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 4), st.integers(2, 7))
def test_executed_layers_are_the_plan_and_a_batch_is_its_sequences(seed, batch, steps):
    lm, draw = random_lm(num_layers=5), np.random.default_rng(seed)
    depths = np.sort(draw.integers(1, 6, steps))[::-1]
    plan = {-1: list(range(5))} | {i: sorted({0} | set(range(5 - int(n) + 1, 5))) for i, n in enumerate(depths)}
    prompts = [draw.integers(0, 256, int(draw.integers(1, 6))).tolist() for _ in range(batch)]
    together = decode(lm, prompts, Planned(plan), steps, keep_logits=True)
    for b, prompt in enumerate(prompts):
        alone = decode(lm, [prompt], Planned(plan), forced=torch.tensor([together.fed[b]]), keep_logits=True)
        assert torch.allclose(alone.logits[0], together.logits[b], atol=1e-3)
        ran = (together.stack.cells(b) == EXECUTED)[:, len(prompt):]
        assert ran.sum(0).tolist() == [len(plan[i]) for i in range(steps - 1)]
    assert [work.layer_tok for work in together.step_work] == [batch * len(plan[i]) for i in range(steps - 1)]


def test_forced_logits_are_those_of_one_pass():
    lm, prompt, forced = random_lm(), tokens(1, 5), tokens(1, 6, 3)
    run = decode(lm, prompt.tolist(), FullDepth(), forced=forced, keep_logits=True)
    assert torch.allclose(run.logits, lm(torch.cat([prompt, forced], 1))[:, 4:10], atol=1e-4)


def test_increasing_depth_meets_the_guard():
    plan = {-1: [0, 1, 2], 0: [0, 2], 1: [0, 1, 2]}
    with pytest.raises(MissingKeys, match="layer 1"):
        decode(random_lm(num_layers=3), "abc", Planned(plan), 4)


def test_texts_end_where_all_have_ended():
    lm = random_lm()
    first = decode(lm, ["ab", "cd"], FullDepth(), 5)
    end = first.fed[0][2]
    lm.config = type(lm.config)(**{**lm.config.__dict__, "eos_ids": (end,)})
    run = decode(lm, ["ab"], FullDepth(), 5, stop_at_end=True)
    assert run.tokens == [first.fed[0][:first.fed[0].index(end)]] and len(run.step_work) == first.fed[0].index(end)


def test_blocks_cut_where_layers_jump():
    assert blocks([0, 1, 4, 5, 9]) == [[0, 1], [4, 5], [9]] and blocks([]) == []


@pytest.mark.parametrize("layers", [[0, 3], [1, 1], [2, 0], [-1]])
def test_layers_outside_the_model_or_out_of_order(layers):
    with pytest.raises(ValueError, match=r"must ascend within 0\.\.2"):
        checked_layers(layers, 3)


@pytest.mark.parametrize("layer", [0, 4, -1, 1.5, True])
def test_an_exit_outside_the_model(layer):
    with pytest.raises(ValueError, match=f"exit layer {layer} is outside the model.*from 1 to 3"):
        checked_exit(layer, 3)


def test_bad_input_to_the_loop():
    lm = random_lm()
    with pytest.raises(ValueError, match="prompt 1 of 3 is empty"):
        decode(lm, ["a", "", "b"], FullDepth())
    with pytest.raises(ValueError, match="no prompt"):
        decode(lm, [], FullDepth())
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        decode(lm, "a", FullDepth(), 0)
    with pytest.raises(ValueError, match="there are 1 prompts"):
        decode(lm, "a", FullDepth(), forced=tokens(2, 3))
    with pytest.raises(ValueError, match="runs no layer at index -1"):
        decode(lm, "a", Planned({-1: []}))


# -- going back ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("back", [0, 3, 6])
def test_rewinding_forgets_exactly_the_newest(back):
    lm, ids = random_lm(), tokens(2, 6)
    cache = lm.new_cache(2, strict=True)
    lm(ids, cache)
    cache.rewind(back)
    again = tokens(2, 4, 7)
    assert torch.allclose(lm(again, cache), lm(torch.cat([ids[:, :back], again], 1))[:, back:], atol=1e-5)


def test_rewinding_each_sequence_to_its_own_length():
    lm, ids = random_lm(), tokens(2, 6)
    lm(ids, cache := lm.new_cache(2, strict=True))
    cache.rewind([2, 5])
    new = lm(tokens(2, 1, 7), cache)
    for b, length in enumerate([2, 5]):
        whole = torch.cat([ids[b:b + 1, :length], tokens(2, 1, 7)[b:b + 1]], 1)
        assert torch.allclose(new[b, -1], lm(whole)[0, -1], atol=1e-5)
    with pytest.raises(ValueError, match=r"cannot rewind to \[9, 9\]"):
        cache.rewind(9)
