"""SkipDecode: the schedule, no key ever missing, equality with a brute-force model, and wrong implementations rejected."""
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.depth import EXECUTED, Affine
from frugal.core.depth_decode import FullDepth, PlannedDepth, decode
from frugal.core.kvcache import MissingKeys
from frugal.core.lm import random_lm
from frugal.early_exit.skip_baselines import EarlyTermination, MiddleSkip
from frugal.early_exit.skipdecode import DepthTable, SkipDecode, SkipSchedule, checked_depths, top_layers
from frugal.models.mini_lm import training_logits, training_states

LAYERS = 6
LM = random_lm(4, num_layers=LAYERS)
SHAPE = {name: getattr(LM.config, name) for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads",
                                                     "head_dim", "intermediate_size", "rope_theta", "norm_eps", "tie_embeddings")}
FALLING = (6, 5, 5, 3, 2, 2, 2)


def tokens(batch, count, seed=0):
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(seed))


def brute_force(prompt, forced, depths):
    """Logits of each forced token from one pass over the whole text, in which layer i takes the leading positions only."""
    text = torch.cat([prompt, forced[:, :-1]], 1)
    reach = [text.shape[1] if i == 0 else sum(LAYERS - d + 1 <= i for d in depths) for i in range(LAYERS)]
    states = training_states(LM.weights, text, reach, shape=SHAPE)[-1]
    return training_logits(LM.weights, states, SHAPE)[:, prompt.shape[1] - 1:]


def differs_from_brute_force(policy, table=FALLING):
    prompt, forced = tokens(2, 4, 1), tokens(2, len(table) + 1, 2)
    run = decode(LM, prompt.tolist(), policy, forced.shape[1], forced=forced, keep_logits=True)
    wanted = brute_force(prompt, forced, [table[0]] * 4 + list(table))
    return not torch.allclose(run.logits, wanted, atol=1e-3)


# -- the schedule ----------------------------------------------------------------------------------------------------

@st.composite
def schedules(draw):
    num_layers = draw(st.integers(3, 40))
    warm_up = draw(st.integers(0, min(3, num_layers - 2)))
    n_min = draw(st.integers(warm_up + 1, num_layers))
    speedup = draw(st.floats(1, num_layers / n_min))
    return SkipSchedule(num_layers, speedup, n_min, draw(st.integers(2, 80)), warm_up)


@given(schedules())
def test_depth_never_rises_and_every_key_a_position_needs_is_there(schedule):
    sets = [set(schedule.layers(j)) for j in range(-1, schedule.num_steps + 3)]
    assert all(later <= earlier for earlier, later in zip(sets, sets[1:]))
    assert all(len(s) == schedule.depth(j) for j, s in zip(range(-1, schedule.num_steps + 3), sets))
    assert all(schedule.n_min <= len(s) <= schedule.num_layers for s in sets)
    assert all(set(range(schedule.warm_up)) <= s and schedule.num_layers - 1 in s for s in sets)


@given(schedules())
def test_the_mean_depth_is_the_target_up_to_rounding(schedule):
    high, low = schedule.ends
    assert (high + low) / 2 == pytest.approx(schedule.num_layers / schedule.speedup) and schedule.n_min <= low + 1e-9
    slack = 0.5 if high - low < 4 or schedule.num_steps < 32 else 0.25
    assert abs(schedule.mean_depth - schedule.num_layers / schedule.speedup) <= slack + 1e-9


def test_a_worked_schedule():
    schedule = SkipSchedule(12, 2, n_min=2, num_steps=9)
    assert [schedule.depth(j) for j in range(-1, 10)] == [10, 10, 9, 8, 7, 6, 5, 4, 3, 2, 2]
    assert schedule.layers(3) == [0, 6, 7, 8, 9, 10, 11] and schedule.mean_depth == 6
    assert SkipSchedule(12, 1.25, 2, 33).ends == pytest.approx((12, 7.2))        # cannot start above 12, so it ends higher


def test_only_depths_with_a_bridge_are_taken():
    schedule = SkipSchedule(30, 2, 7, 64, depths=(30, 28, 16, 7))
    assert {schedule.depth(j) for j in range(64)} <= {30, 28, 16, 7}
    assert all(schedule.depth(j) >= schedule.depth(j + 1) for j in range(63))


@pytest.mark.parametrize("options, words", [
    (dict(num_layers=12, speedup=0.5), "give 1 to"), (dict(num_layers=12, speedup=7), "give 1 to 6"),
    (dict(num_layers=12, speedup=2, n_min=1), "n_min 1"), (dict(num_layers=12, speedup=2, n_min=13), "n_min 13"),
    (dict(num_layers=12, speedup=2, num_steps=1), "num_steps"), (dict(num_layers=12, speedup=2, warm_up=12), "warm_up 12"),
    (dict(num_layers=12, speedup=float("nan")), "speed-up nan"), (dict(num_layers=12, speedup=2, depths=(13, 5)), "depth 13"),
])
def test_a_bad_schedule_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SkipSchedule(**options)


@pytest.mark.parametrize("depths, words", [((4, 5), "rises from 4 to 5 at position 1"), ((7,), "depth 7"), ((3, 1), "depth 1"), ((), "empty")])
def test_rising_or_impossible_depths_are_refused(depths, words):
    with pytest.raises(ValueError, match=words):
        checked_depths(depths, LAYERS)
    with pytest.raises(ValueError, match=words):
        DepthTable(LAYERS, depths)


def test_a_prompt_shallower_than_the_answer_and_another_model_are_refused():
    with pytest.raises(ValueError, match="prompt_depth 4"):
        SkipDecode(DepthTable(LAYERS, (5, 4)), prompt_depth=4)
    with pytest.raises(ValueError, match="the model has 6"):
        decode(LM, [[1, 2]], SkipDecode(SkipSchedule(12, 2)), 2)
    with pytest.raises(ValueError, match="prompt 1 of 2 is empty"):
        decode(LM, [[1, 2], []], SkipDecode(SkipSchedule(LAYERS, 2)), 2)
    with pytest.raises(ValueError, match="budget"):
        SkipDecode.for_budget(1.5, LM)


# -- running it ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("policy", [SkipDecode(SkipSchedule(LAYERS, 1)), SkipDecode.for_budget(1.0, LM), SkipDecode.for_budget(LAYERS, LM),
                                    EarlyTermination(SkipSchedule(LAYERS, 1)), MiddleSkip(LAYERS)], ids=lambda p: type(p).__name__)
def test_full_depth_writes_the_same_tokens_as_the_model(policy):
    prompts = [tokens(1, n, n)[0].tolist() for n in (3, 7)]
    whole, ours = decode(LM, prompts, FullDepth(), 12, keep_logits=True), decode(LM, prompts, policy, 12, keep_logits=True)
    assert ours.tokens == whole.tokens and torch.allclose(ours.logits, whole.logits, atol=1e-4)


def test_skipped_layers_do_not_run_and_the_rest_is_the_brute_force_model():
    policy = SkipDecode(DepthTable(LAYERS, FALLING))
    assert not differs_from_brute_force(policy)
    run = decode(LM, [[1, 2, 3]], policy, len(FALLING) + 1, forced=tokens(1, len(FALLING) + 1))
    assert [w.layer_calls for w in run.step_work] == list(FALLING)
    assert run.mean_layers == pytest.approx(sum(FALLING) / len(FALLING))
    grid = run.stack.cells(0)
    for j, depth in enumerate([FALLING[0]] * 3 + list(FALLING)):
        assert (grid[:, j] == EXECUTED).nonzero()[0].tolist() == top_layers(depth, LAYERS)


@given(st.lists(st.integers(2, LAYERS), min_size=1, max_size=10), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_no_schedule_that_is_let_through_misses_a_key(depths, extra):
    depths = tuple(sorted(depths, reverse=True))
    policy = SkipDecode(DepthTable(LAYERS, depths), prompt_depth=min(LAYERS, depths[0] + extra))
    decode(LM, [[5, 6], [7, 8, 9]], policy, len(depths) + 2)                       # the strict cache would raise


def test_a_batch_writes_what_its_sequences_write_alone():
    policy = SkipDecode(SkipSchedule(LAYERS, 2, num_steps=12))
    prompts = [tokens(1, n, n)[0].tolist() for n in (2, 5, 9)]
    together = decode(LM, prompts, policy, 14, keep_logits=True)
    for b, prompt in enumerate(prompts):
        alone = decode(LM, [prompt], policy, 14, keep_logits=True)
        assert together.tokens[b] == alone.tokens[0] and torch.allclose(together.logits[b], alone.logits[0], atol=1e-3)
    assert together.mean_layers == alone.mean_layers                              # nobody waits


def test_a_deeper_prompt_keeps_all_its_keys():
    policy = SkipDecode(DepthTable(LAYERS, (3, 2)), prompt_depth=LAYERS)
    assert policy.layers(-1, LAYERS) == list(range(LAYERS)) and policy.layers(0, LAYERS) == [0, 4, 5]
    run = decode(LM, [[1, 2, 3]], policy, 4)
    assert run.prompt_work.layer_calls == LAYERS


def test_a_bridge_stands_in_the_jump_and_is_charged():
    bridge = Affine(torch.eye(48) * 2, torch.ones(48), normalised=False)
    policy = SkipDecode(DepthTable(LAYERS, (6, 3, 3)), bridges={4: bridge})
    run = decode(LM, [[1, 2]], policy, 4)
    assert [w.map_calls for w in run.step_work] == [0, 1, 1]


# -- implementations that must not pass ------------------------------------------------------------------------------

@dataclass(frozen=True)
class Rising(PlannedDepth):
    def layers(self, index, num_layers):
        return top_layers(min(num_layers, 3 + max(index, 0)), num_layers)


class SkipsTheTop(SkipDecode):
    def layers(self, index, num_layers):
        return list(range(self.schedule.depth(index)))


class OffsetPerLayer(SkipDecode):
    """Takes the place in the text from what each layer holds."""

    def step(self, stack, x, index, memory):
        for i in self.layers(index, stack.num_layers):
            positions = stack.cache.num_held(i)[:, None]
            x = stack.run(x, [i], positions)
        return stack.logits(x)


class ShiftedByOne(SkipDecode):
    def layers(self, index, num_layers):
        return super().layers(index + 1, num_layers)


def test_rising_depth_is_stopped_by_the_cache():
    with pytest.raises(MissingKeys):
        decode(LM, [[1, 2, 3]], Rising(), 4)


@pytest.mark.parametrize("wrong", [SkipsTheTop, ShiftedByOne])
def test_wrong_layers_are_seen(wrong):
    assert differs_from_brute_force(wrong(DepthTable(LAYERS, FALLING)))


class OffsetByOneLayer(SkipDecode):
    """One offset for all layers, but the least of what they hold: wrong once one was skipped."""

    def step(self, stack, x, index, memory):
        least = min(int(stack.cache.num_held(i).min()) for i in range(stack.num_layers))
        positions = torch.full((len(x), 1), least)
        for i in self.layers(index, stack.num_layers):
            x = stack.run(x, [i], positions)
        return stack.logits(x)


def test_an_offset_counted_per_layer_is_seen():
    """A skipped layer never runs again, so its own count happens to stay right; one layer's count for all does not."""
    assert not differs_from_brute_force(OffsetPerLayer(DepthTable(LAYERS, FALLING)))
    with pytest.raises(MissingKeys, match="written already"):
        differs_from_brute_force(OffsetByOneLayer(DepthTable(LAYERS, FALLING)))
