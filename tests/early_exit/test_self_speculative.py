"""Self-speculative decoding writes what greedy decoding writes, for every draft; wrong checks are seen."""
import pytest
import torch

from frugal.core.depth import Affine
from frugal.core.depth_decode import decode
from frugal.core.lm import random_lm
from frugal.early_exit.fixed_exit import Full
from frugal.early_exit.lenses import RidgeLens
from frugal.early_exit.self_speculative import SelfSpeculative

LAYERS = 4


def easy_lm(seed=0):
    """A random model whose upper layers change little, so that some drafts hold and some do not."""
    lm = random_lm(seed, num_layers=LAYERS)
    for i in range(1, LAYERS):
        lm.layers[i]["o"].mul_(0.15)
        lm.layers[i]["down"].mul_(0.15)
    return lm


LM = easy_lm()
PROMPT = [9, 8, 7]
GREEDY = decode(LM, [PROMPT], Full(), 24).tokens[0]


@pytest.mark.parametrize("exit_layer", range(1, LAYERS))
@pytest.mark.parametrize("gamma", [1, 2, 3, 5, 8])
def test_equals_greedy_for_every_exit_and_gamma(exit_layer, gamma):
    run = SelfSpeculative(exit_layer, gamma).generate(LM, PROMPT, 24, stop_at_end=False)
    assert run.tokens == GREEDY


def test_some_drafts_hold_and_some_do_not():
    runs = [SelfSpeculative(e, 4).generate(LM, PROMPT, 24, stop_at_end=False) for e in range(1, LAYERS)]
    assert 0 < runs[0].acceptance < 1 and runs[-1].acceptance >= runs[0].acceptance > 0


@pytest.mark.parametrize("seed", range(4))
def test_equals_greedy_whatever_the_lens_drafts(seed):
    generator = torch.Generator().manual_seed(seed)
    lens = RidgeLens({2: Affine(torch.randn(48, 48, generator=generator), torch.zeros(48))})
    run = SelfSpeculative(2, 3, lens).generate(LM, PROMPT, 20, stop_at_end=False)
    assert run.tokens == GREEDY[:20] and run.acceptance < 0.5


def test_the_drafts_layers_are_not_run_again():
    run = SelfSpeculative(2, 4).generate(LM, PROMPT, 24, stop_at_end=False)
    fed = run.drafted + run.rounds                               # each round feeds its drafts and the last token
    assert run.work.layer_tok == fed * LAYERS                    # every fed token went once through every layer
    assert run.work.layer_calls == fed * 2 + run.rounds * (LAYERS - 2)
    assert run.work.head_tok == run.drafted + fed and run.accepted + run.rounds >= 23


def test_the_cache_is_that_of_the_text():
    run = SelfSpeculative(2, 4).generate(LM, PROMPT, 16, stop_at_end=False)
    seen = int(run.stack.cache.num_seen[0])
    text = (PROMPT + run.tokens)[:seen]
    LM(torch.tensor([text]), fresh := LM.new_cache())
    for layer in range(LAYERS):
        length = len(text)
        assert torch.allclose(run.stack.cache.keys[layer][:, :, :length], fresh.keys[layer][:, :, :length], atol=1e-3)


def test_the_end_token_ends_the_text():
    lm = easy_lm()
    lm.config = type(lm.config)(**{**lm.config.__dict__, "eos_ids": (GREEDY[5],)})
    assert SelfSpeculative(2, 4).generate(lm, PROMPT, 24).tokens == GREEDY[:GREEDY.index(GREEDY[5])]


class AcceptsEverything(SelfSpeculative):
    """Takes the drafts as they are."""
    def _round(self, stack, run, gamma):
        before = len(run.tokens)
        super()._round(stack, run, gamma)
        seen = int(stack.cache.num_seen[0])
        del before, seen
        run.tokens[-1] = (run.tokens[-1] + 1) % 256 if run.accepted % 3 == 0 else run.tokens[-1]


class ForgetsToRewind(SelfSpeculative):
    """Leaves the keys of refused drafts in the cache."""
    def _round(self, stack, run, gamma):
        rewind, stack.cache.rewind = stack.cache.rewind, lambda num_seen: None
        try:
            super()._round(stack, run, gamma)
        finally:
            stack.cache.rewind = rewind


@pytest.mark.parametrize("wrong", [AcceptsEverything, ForgetsToRewind])
def test_wrong_checks_are_seen(wrong):
    assert wrong(1, 4).generate(LM, PROMPT, 24, stop_at_end=False).tokens != GREEDY


@pytest.mark.parametrize("call, said", [
    (lambda: SelfSpeculative(0), "exit layer 0 is outside the model"), (lambda: SelfSpeculative(2, 0), "gamma 0"),
    (lambda: SelfSpeculative(LAYERS).generate(LM, PROMPT), "exit layer 4 is outside the model"),
    (lambda: SelfSpeculative(2).generate(LM, []), "is empty"),
    (lambda: SelfSpeculative(2).generate(LM, PROMPT, 0), "max_new_tokens must be at least 1")])
def test_bad_input_is_one_clear_error(call, said):
    with pytest.raises(ValueError, match=said):
        call()
