"""Two models, one text: the limits are each model alone, and the large cache is that of a fresh prefill."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.lm import ByteTokenizer, random_lm
from frugal.core.pair import LARGE, SMALL, check_same_tokenizer, extend, generate_pair

PROMPT = [3, 1, 4, 1, 5]


def pair():
    small = random_lm(1, hidden_size=24)
    return small, random_lm(2, num_layers=3, tokenizer=small.tokenizer)


def greedy(lm, prompt, count):
    text = list(prompt)
    for _ in range(count):
        text.append(int(lm(torch.tensor([text]))[0, -1].argmax()))
    return text[len(prompt):]


@pytest.mark.parametrize("threshold, who", [(0.0, "large"), (2.0, "small")])
def test_the_limits_are_each_model_alone(threshold, who):
    small, large = pair()
    run = generate_pair(small, large, PROMPT, lambda step: 0.5, threshold, 12, stop_at_end=False)
    assert run.tokens == greedy(large if who == "large" else small, PROMPT, 12)
    assert run.large_share == (who == "large")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=10, max_size=10))
def test_each_token_is_its_writers_choice_and_the_cache_is_a_fresh_prefill(pattern):
    small, large = pair()
    run = generate_pair(small, large, PROMPT, lambda step: float(pattern[step.index]), 0.5, 10, stop_at_end=False)
    assert run.writers == [LARGE if p else SMALL for p in pattern]
    for i, (token, writer) in enumerate(zip(run.tokens, run.writers)):
        assert token == greedy(large if writer else small, PROMPT + run.tokens[:i], 1)[0]
        assert run.proposed[i] == greedy(small, PROMPT + run.tokens[:i], 1)[0]
    seen = int(run.large_cache.num_seen[0])
    assert sum(run.large_read) == seen and (seen == 0 or run.large_read[0] >= len(PROMPT))
    if seen:
        large((torch.tensor([PROMPT + run.tokens])[:, :seen]), fresh := large.new_cache())
        for layer in range(3):
            assert torch.allclose(run.large_cache.keys[layer][:, :, :seen], fresh.keys[layer][:, :, :seen], atol=1e-4)


def test_what_the_decision_sees_is_the_small_models():
    small, large = pair()
    seen = []
    generate_pair(small, large, PROMPT, lambda step: seen.append(step) or 0.0, 0.5, 3)
    for step in seen:
        out = small.run(torch.tensor([step.text[:len(PROMPT) + step.index]]), hidden=True)
        assert torch.allclose(step.logits, out.logits[0, -1], atol=1e-4)
        assert torch.allclose(step.hidden, out.hidden[-1][0, -1], atol=1e-4)
        assert step.token == int(out.logits[0, -1].argmax())


def test_extending_reads_only_what_is_new():
    lm = random_lm()
    cache = lm.new_cache()
    extend(lm, cache, [1, 2, 3])
    out = extend(lm, cache, [1, 2, 3, 4, 5])
    assert torch.allclose(out.logits[0, -1], lm(torch.tensor([[1, 2, 3, 4, 5]]))[0, -1], atol=1e-5)
    with pytest.raises(ValueError, match="seen 5 tokens and the text has 5"):
        extend(lm, cache, [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="this cache holds 2"):
        extend(lm, lm.new_cache(2), [1])


def test_the_end_token_ends_the_text():
    small, large = pair()
    first = generate_pair(small, large, PROMPT, lambda step: 1.0, 0.5, 12).tokens
    large.config = type(large.config)(**{**large.config.__dict__, "eos_ids": (first[4],)})
    run = generate_pair(small, large, PROMPT, lambda step: 1.0, 0.5, 12)
    assert run.tokens == first[:first.index(first[4]) + 1]


class OtherTokenizer(ByteTokenizer):
    pass


@pytest.mark.parametrize("other", [random_lm(vocab_size=310), random_lm(tokenizer=OtherTokenizer())])
def test_two_models_with_different_tokenizers(other):
    small, _ = pair()
    with pytest.raises(ValueError, match="different tokenizers"):
        check_same_tokenizer(small, other)
    with pytest.raises(ValueError, match="different tokenizers"):
        generate_pair(small, other, PROMPT, lambda step: 1.0, 0.5)


def test_two_byte_tokenizers_are_the_same():
    check_same_tokenizer(random_lm(), random_lm(3))


@pytest.mark.parametrize("prompt, count, threshold, said", [
    ([], 4, 0.5, "prompt is empty"), (PROMPT, 0, 0.5, "max_new_tokens 0"), (PROMPT, 4, float("nan"), "threshold nan")])
def test_bad_input(prompt, count, threshold, said):
    with pytest.raises(ValueError, match=said):
        generate_pair(*pair(), prompt, lambda step: 1.0, threshold, count)
