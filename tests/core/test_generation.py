"""Generation: batches equal single runs, sampling is seeded, both protocols hold their promise, bad input is named."""
import math

import pytest
import torch

from frugal.core.generation import Prompt, generate
from frugal.core.lm import random_lm
from frugal.kv_eviction import HeavyHitter, Knorm, StreamingLLM, Window

LM2 = random_lm()
TEXTS = ["a longer prompt of the batch, with some words", "short", "one of middle length"]


def plain_greedy(lm, ids, count):
    """The loop without a cache: the whole text again for every token."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(lm(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-count:]


def test_batch_of_different_lengths_equals_the_plain_loop():
    found = generate(LM2, TEXTS, max_new_tokens=9, stop_at_end=False)
    for text, one in zip(TEXTS, found):
        ids = LM2.tokenizer.encode(text)
        assert one.tokens == plain_greedy(LM2, ids, 9) and one.num_prompt == len(ids)
        assert one.text == LM2.tokenizer.decode(one.tokens)
        assert one.num_bytes == one.cache.num_bytes > 0 and one.seconds > 0
        assert one.cache.num_held().tolist() == [len(ids) + 8]


def test_a_sequence_that_ends_leaves_the_batch_and_the_others_go_on():
    full = generate(LM2, TEXTS, max_new_tokens=9, stop_at_end=False)
    end = full[1].tokens[3]
    lm = random_lm()
    object.__setattr__(lm.config, "eos_ids", (end,))
    found = generate(lm, TEXTS, max_new_tokens=9)
    for one, whole in zip(found, full):
        stop = whole.tokens.index(end) if end in whole.tokens else 9
        assert one.tokens == whole.tokens[:stop]


def test_sampling_is_seeded_and_differs_by_seed():
    draw = lambda seed: generate(LM2, TEXTS[:1], max_new_tokens=12, temperature=1.0, seed=seed)[0].tokens   # noqa: E731
    assert draw(1) == draw(1) != draw(2)


def test_sampling_follows_the_distribution():
    ids = LM2.tokenizer.encode("x")
    probs = LM2(torch.tensor([ids]))[0, -1].softmax(-1)
    top = int(probs.argmax())
    hits = sum(generate(LM2, [ids], max_new_tokens=1, temperature=1.0, seed=s, stop_at_end=False)[0].tokens == [top]
               for s in range(300))
    sigma = math.sqrt(300 * float(probs[top]) * (1 - float(probs[top])))
    assert abs(hits - 300 * float(probs[top])) < 4 * sigma


def test_streaming_callback_sees_every_token_and_may_stop_the_run():
    seen = []
    found = generate(LM2, TEXTS[:2], max_new_tokens=4, stop_at_end=False, on_step=lambda step: seen.append(step))
    assert [s.index for s in seen] == [0, 1, 2, 3]
    assert [s.tokens[0] for s in seen] == found[0].tokens and seen[-1].texts[1] == LM2.tokenizer.decode(found[1].tokens)

    def stop(step):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        generate(LM2, TEXTS[:1], on_step=stop)


def test_compress_once_cuts_the_context_and_then_grows():
    context, question = list(range(1, 41)), list(range(50, 56))
    held = []
    one = generate(LM2, Prompt(context, question), Knorm(), 0.25, max_new_tokens=5, stop_at_end=False,
                   on_step=lambda s: held.append(s.num_held[0]))[0]
    assert held == [16, 17, 18, 19, 20] and one.num_prompt == 46


def test_query_aware_compresses_the_question_too():
    context, question = list(range(1, 41)), list(range(50, 56))
    one = generate(LM2, Prompt(context, question), Window(), 10, query_aware=True, max_new_tokens=1, stop_at_end=False)[0]
    kept = one.cache.positions[0][0, 0, :int(one.cache.num_held()[0])].tolist()
    assert kept == list(range(35, 45)) + [45]


def test_fixed_size_budget_of_each_sequence_is_its_own():
    prompts = [list(range(1, 41)), list(range(1, 21))]
    held = []
    generate(LM2, prompts, HeavyHitter(), 0.5, "fixed_size", 6, stop_at_end=False, on_step=lambda s: held.append(s.num_held))
    assert held == [[20, 10]] * 6


def test_renumbered_positions_go_beyond_the_context():
    lm = random_lm(max_positions=32)
    one = generate(lm, [list(range(1, 31))], StreamingLLM(), 16, "fixed_size", 20, positions="renumbered", stop_at_end=False)[0]
    assert len(one.tokens) == 20 and one.cache.num_seen.tolist() == [49]


BAD = [
    (dict(prompts=""), "empty"), (dict(prompts=[[]]), "empty"),
    (dict(prompts=[list(range(9)) * 1000]), "context of 8192"),
    (dict(policy=Knorm()), "needs a budget"), (dict(budget=0.5), "needs a policy"),
    (dict(policy=Knorm(), budget=0), "budget 0 "), (dict(policy=Knorm(), budget=-1), "budget -1"),
    (dict(policy=Knorm(), budget=999), "999"), (dict(policy=Knorm(), budget=math.nan), "nan"),
    (dict(policy=Knorm(), budget=1.5), "1.5"), (dict(policy=StreamingLLM(), budget=3), "protects 5"),
    (dict(policy=Knorm, budget=0.5), "parentheses"), (dict(protocol="twice"), "compress_once"),
    (dict(max_new_tokens=0), "at least 1"), (dict(temperature=-1.0), "temperature"),
    (dict(temperature=math.nan), "temperature"),
]


@pytest.mark.parametrize("options, said", BAD, ids=[said for _, said in BAD])
def test_bad_input_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        generate(LM2, **{"prompts": ["a prompt of some length"], **options})


def test_no_prompts_no_answers():
    assert generate(LM2, []) == []
