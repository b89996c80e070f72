"""Fixed exit, unified skipping and confident exit: limits, exactness of recomputing, brute force for state copying."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.depth import EXECUTED, FILLED, RECOMPUTED, Affine, Stack
from frugal.core.depth_decode import decode
from frugal.core.lm import random_lm
from frugal.early_exit.calm import ConfidenceExit
from frugal.early_exit.fixed_exit import FixedExit, Full
from frugal.early_exit.lenses import LogitLens, RidgeLens
from frugal.early_exit.unified_skipping import UnifiedSkipping

LAYERS = 6
LM = random_lm(4, num_layers=LAYERS)


def tokens(batch, count, seed=0):
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(seed))


def random_lens(seed=0, exits=(2, 3, 5)):
    generator = torch.Generator().manual_seed(seed)
    return RidgeLens({e: Affine(torch.randn(48, 48, generator=generator) / 2, torch.zeros(48)) for e in exits})


NEVER = [FixedExit(LAYERS), UnifiedSkipping(LAYERS), ConfidenceExit(1.0), ConfidenceExit(1.0, missing="recompute"),
         ConfidenceExit(1.0, measure="saturation"), FixedExit(LAYERS, random_lens())]


@pytest.mark.parametrize("policy", NEVER, ids=["fixed", "unified", "confident", "confident-recompute", "saturation", "fixed-ridge"])
def test_leaving_at_the_last_layer_is_the_whole_model(policy):
    prompts = [tokens(1, n, n)[0].tolist() for n in (3, 7)]
    whole, ours = decode(LM, prompts, Full(), 10, keep_logits=True), decode(LM, prompts, policy, 10, keep_logits=True)
    assert ours.tokens == whole.tokens and torch.allclose(ours.logits, whole.logits, atol=1e-3)
    assert ours.mean_layers == LAYERS and (ours.stack.cells(0) == EXECUTED).all()


@pytest.mark.parametrize("exit_layer", range(1, LAYERS + 1))
def test_a_fixed_exit_is_a_shorter_model(exit_layer):
    forced = tokens(2, 5, 9)
    run = decode(LM, [[1, 2], [3, 4]], FixedExit(exit_layer), forced=forced, keep_logits=True)
    ids = torch.cat([torch.tensor([[1, 2], [3, 4]]), forced[:, :-1]], 1)
    wanted = LM.run(ids, layers=list(range(exit_layer))).logits[:, 1:]
    assert torch.allclose(run.logits, wanted, atol=1e-4) and run.mean_layers == exit_layer
    assert (run.stack.cells(0)[:exit_layer] == EXECUTED).all() and not run.stack.cells(0)[exit_layer:].any()


@given(st.integers(2, 60), st.data())
def test_unified_skipping_keeps_both_ends_and_spreads_the_rest(num_layers, data):
    num_run = data.draw(st.integers(2, num_layers))
    layers = UnifiedSkipping(num_run).layers(0, num_layers)
    gaps = {b - a for a, b in zip(layers, layers[1:])}
    assert len(set(layers)) == num_run and layers[0] == 0 and layers[-1] == num_layers - 1
    assert max(gaps) - min(gaps) <= 1


def test_unified_skipping_is_that_model():
    forced = tokens(1, 5, 9)
    run = decode(LM, [[1, 2]], UnifiedSkipping(3), forced=forced, keep_logits=True)
    layers = UnifiedSkipping(3).layers(0, LAYERS)
    wanted = LM.run(torch.cat([torch.tensor([[1, 2]]), forced[:, :-1]], 1), layers=layers).logits[:, 1:]
    assert torch.allclose(run.logits, wanted, atol=1e-4)


# -- confident exit -----------------------------------------------------------------------------------------------

THRESHOLDS = st.floats(0.05, 0.9)


@settings(max_examples=15, deadline=None)
@given(THRESHOLDS, st.integers(0, 9), st.sampled_from(["gap", "saturation"]), st.integers(1, 3))
def test_with_recomputing_every_state_is_the_whole_models(threshold, seed, measure, batch):
    lens = random_lens(seed)
    policy = ConfidenceExit(threshold, lens=lens, measure=measure, missing="recompute")
    prompt, forced = tokens(batch, 4, seed), tokens(batch, 12, seed + 1)
    run = decode(LM, prompt.tolist(), policy, forced=forced, keep_logits=True)
    ids = torch.cat([prompt, forced[:, :-1]], 1)
    whole = LM.run(ids, cache := LM.new_cache(batch), hidden=True)
    for step, depths in enumerate(run.memory["depths"]):
        for b, depth in enumerate(depths):
            state = whole.hidden[depth][b:b + 1, 4 + step:5 + step]
            wanted = lens.logits(Stack(LM), state, depth)[0, 0]
            assert torch.allclose(run.logits[b, step + 1], wanted, atol=2e-3)
    for layer in range(LAYERS):
        held = int(run.stack.cache.num_held(layer)[0])
        assert torch.allclose(run.stack.cache.keys[layer][:, :, :held], cache.keys[layer][:, :, :held], atol=2e-3)


def copying_by_hand(lm, policy, text, num_prompt):
    """Logits and depths of one sequence: plain attention over keys kept in lists, states copied upwards."""
    c = lm.config
    keys = [[] for _ in range(c.num_layers)]
    found, depths = [], []

    def project(i, x, position):
        qkv = lm._norm(x, lm.layers[i]["attn_norm"]) @ lm.layers[i]["qkv"].T
        heads = qkv.view(1, 1, -1, c.head_dim)
        turned = lm.rope.rotate(heads[:, :, :c.num_heads + c.num_kv_heads], torch.tensor([[position]]))
        return (turned[0, 0, :c.num_heads], turned[0, 0, c.num_heads:], heads[0, 0, c.num_heads + c.num_kv_heads:])

    for position, token in enumerate(text):
        x = lm.weights["embed"][token][None, None]
        depth = c.num_layers
        for i in range(c.num_layers):
            q, k, v = project(i, x, position)
            keys[i].append((k, v))
            out = []
            for h in range(c.num_heads):
                ks, vs = (torch.stack([pair[j][h // (c.num_heads // c.num_kv_heads)] for pair in keys[i]]) for j in (0, 1))
                out.append(((ks @ q[h]) / c.head_dim ** 0.5).softmax(0) @ vs)
            x = x + torch.cat(out)[None, None] @ lm.layers[i]["o"].T
            x = x + lm._mlp(i, x)
            if position >= num_prompt and i + 1 in policy.candidates(c.num_layers):
                top = policy.lens.logits(Stack(lm), x, i + 1)[0, 0].softmax(-1).topk(2).values
                if top[0] - top[1] >= policy.threshold_at(position - num_prompt):
                    depth = i + 1
                    break
        for i in range(depth, c.num_layers):
            keys[i].append(project(i, x, position)[1:])
        if position >= num_prompt:
            depths.append(depth)
            found.append((policy.lens.logits(Stack(lm), x, depth) if depth < c.num_layers else lm.unembed(x))[0, 0])
    return torch.stack(found), depths


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.35, 0.5])
@pytest.mark.parametrize("decay", [0.0, 4.0])
def test_state_copying_by_brute_force(threshold, decay):
    policy = ConfidenceExit(threshold, lens=random_lens(3), decay=decay, horizon=8)
    text = tokens(1, 14, 5)[0].tolist()
    run = decode(LM, [text[:4]], policy, forced=torch.tensor([text[4:]]), keep_logits=True)
    wanted, depths = copying_by_hand(LM, policy, text[:-1], 4)
    assert [d for d, in run.memory["depths"]] == depths
    assert torch.allclose(run.logits[0, 1:], wanted, atol=1e-3)


def test_copying_and_recomputing_really_differ():
    forced = tokens(1, 14, 5)
    runs = [decode(LM, [[1, 2, 3]], ConfidenceExit(0.3, lens=random_lens(3), missing=m), forced=forced, keep_logits=True)
            for m in ("copy", "recompute")]
    depths = [[d for d, in run.memory["depths"]] for run in runs]
    assert min(depths[0]) < LAYERS and max(depths[0]) > min(depths[0])     # else the test shows nothing
    assert not torch.allclose(runs[0].logits, runs[1].logits, atol=1e-2)


@settings(max_examples=15, deadline=None)
@given(THRESHOLDS, st.integers(0, 9), st.sampled_from(["copy", "recompute"]))
def test_the_counter_is_the_grid_and_the_plan(threshold, seed, missing):
    policy = ConfidenceExit(threshold, lens=random_lens(seed), missing=missing)
    run = decode(LM, tokens(1, 4, seed).tolist(), policy, 10)
    depths = [d for d, in run.memory["depths"]]
    cells = run.stack.cells()[:, 4:]
    reached = [int((cells[:, i] != 0).sum()) for i in range(len(depths))]
    if missing == "copy":
        assert [int((cells[:, i] == EXECUTED).sum()) for i in range(len(depths))] == depths and reached == [LAYERS] * len(depths)
        assert run.work.layer_tok == sum(depths) and run.work.fill_tok == sum(LAYERS - d for d in depths)
    else:
        assert reached == [max(depths[i:]) for i in range(len(depths))]    # brought up as far as a later token needed
        assert run.work.layer_tok == sum(reached) and run.work.fill_calls == 0
        assert [int((cells[:, i] == EXECUTED).sum()) for i in range(len(depths))] == depths
    exits = policy.candidates(LAYERS)
    asked = [sum(e <= d for e in exits) + (d == LAYERS) for d in depths]
    assert run.work.head_calls == sum(asked)                               # each question to the head is charged


def test_a_batch_runs_to_its_deepest_token():
    policy = ConfidenceExit(0.35, lens=random_lens(3))
    run = decode(LM, tokens(4, 3, 2).tolist(), policy, 8)
    per_step = [work.layer_calls for work in run.step_work]
    assert per_step == [max(depths) for depths in run.memory["depths"]]
    assert any(min(depths) < max(depths) for depths in run.memory["depths"])


def test_saturation_asks_the_head_only_once():
    run = decode(LM, [[1, 2, 3]], ConfidenceExit(0.6, lens=random_lens(3), measure="saturation"), 10)
    assert run.work.head_calls == 9 and min(d for d, in run.memory["depths"]) < LAYERS


@given(st.floats(0, 1), st.integers(1, 64))
def test_the_decaying_threshold_starts_strict_and_falls(threshold, horizon):
    policy = ConfidenceExit(threshold, decay=4.0, horizon=horizon)
    at = [policy.threshold_at(i) for i in range(horizon + 1)]
    assert all(0 <= b <= a <= 1 for a, b in zip(at, at[1:]))
    assert at[0] == pytest.approx(min(1, 0.9 * threshold + 0.1))
    assert at[-1] == pytest.approx(0.9 * threshold + 0.1 * 2.718281828 ** -4)


# -- wrong implementations ----------------------------------------------------------------------------------------

class NoKeys(ConfidenceExit):
    """Leaves without a trace in the layers above."""
    def _leave(self, stack, x, at, memory):
        pass


class Zeros(ConfidenceExit):
    """Fills the missing keys from a state of zeros."""
    def _leave(self, stack, x, at, memory):
        super()._leave(stack, torch.zeros_like(x), at, memory)


class FirstStateAgain(ConfidenceExit):
    """Copies the state of the first candidate, whatever the exit."""
    def _ask(self, stack, x, at, e, waiting, memory):
        x, sure, said = super()._ask(stack, x, at, e, waiting, memory)
        memory.setdefault("first", {})[len(memory.get("depths", []))] = memory.get("first", {}).get(len(memory.get("depths", [])), x)
        return x, sure, said

    def _leave(self, stack, x, at, memory):
        super()._leave(stack, memory["first"][len(memory.get("depths", []))], at, memory)


def test_a_token_that_leaves_no_keys_meets_the_guard():
    with pytest.raises(ValueError, match="was never written"):
        decode(LM, [[1, 2, 3]], NoKeys(0.3, lens=random_lens(3)), forced=tokens(1, 14, 5))


@pytest.mark.parametrize("wrong", [Zeros, FirstStateAgain])
def test_wrong_copies_are_seen(wrong):
    policy, text = wrong(0.35, lens=random_lens(3)), tokens(1, 14, 5)[0].tolist()
    run = decode(LM, [text[:4]], policy, forced=torch.tensor([text[4:]]), keep_logits=True)
    wanted, _ = copying_by_hand(LM, policy, text[:-1], 4)
    assert not torch.allclose(run.logits[0, 1:], wanted, atol=1e-2)


def test_recomputed_cells_are_marked():
    run = decode(LM, tokens(1, 4).tolist(), ConfidenceExit(0.3, lens=random_lens(3), missing="recompute"), 12)
    assert (run.stack.cells() == RECOMPUTED).any() and not (run.stack.cells() == FILLED).any()


# -- bad input ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make, said", [
    (lambda: ConfidenceExit(1.2), "threshold 1.2 is out of range: give 0"), (lambda: ConfidenceExit(-0.1), "threshold -0.1"),
    (lambda: ConfidenceExit(float("nan")), "threshold nan"), (lambda: ConfidenceExit(measure="entropy"), "'gap' or 'saturation'"),
    (lambda: ConfidenceExit(missing="zeros"), "'copy' or 'recompute'"), (lambda: ConfidenceExit(decay=-1.0), "decay -1.0"),
    (lambda: ConfidenceExit(exits=(3, 2)).candidates(6), "must ascend"),
    (lambda: ConfidenceExit(exits=(3, 9)).candidates(6), "exit layer 9 is outside the model"),
    (lambda: FixedExit(0), "exit layer 0 is outside"), (lambda: FixedExit(7).layers(0, 6), "exit layer 7 is outside the model"),
    (lambda: UnifiedSkipping(1), "num_run 1"), (lambda: UnifiedSkipping(7).layers(0, 6), "num_run 7 is outside the model"),
    (lambda: LogitLens().logits(Stack(LM), torch.zeros(1, 1, 48), 7), "exit layer 7 is outside"),
    (lambda: random_lens().logits(Stack(LM), torch.zeros(1, 1, 48), 4), r"no map for an exit after 4 layers; there are \[2, 3, 5\]"),
    (lambda: decode(LM, [[1], []], Full()), "prompt 1 of 2 is empty")])
def test_bad_input_is_one_clear_error(make, said):
    with pytest.raises(ValueError, match=said):
        make()
