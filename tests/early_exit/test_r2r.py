"""R2R with random pairs: its two ends are the two models, its large cache is what a fresh reading gives, baselines are exact."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.lm import LM, LMConfig
from frugal.core.pair import LARGE, generate_pair
from frugal.data import arithmetic_chains as ac
from frugal.early_exit import r2r, r2r_measure
from frugal.early_exit.r2r_labels import DIVERGENT, IDENTICAL, finish_sentence, label, label_answers
from frugal.early_exit.r2r_router import TokenRouter, choose_threshold, fit, rates
from frugal.models.r2r_pair import greedy, right_share, write_answers

PROBLEMS = ac.chains(7, 6)
NEW = 30


def random_chain_lm(seed: int, hidden_size: int = 32) -> LM:
    """Random weights over the chains' vocabulary, sharp enough that the greedy text is no single token."""
    config = LMConfig(ac.VOCAB_SIZE, hidden_size, 2, 4, 4, hidden_size // 4, 2 * hidden_size, max_positions=300,
                      tie_embeddings=False, bos_id=ac.BOS, eos_ids=(ac.EOS,))
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in config.weight_shapes().items():
        spread = shape[-1] ** -0.5 * (2 if name.endswith("qkv") else 4 if name == "head" else 1)
        weights[name] = torch.ones(shape) if name.endswith("norm") else spread * torch.randn(shape, generator=generator)
    return LM(config, weights, ac.ChainTokenizer(), name=f"random-{seed}")


@pytest.fixture(scope="module")
def pair():
    return random_chain_lm(1, 48), random_chain_lm(2)


@pytest.fixture(scope="module")
def router(pair):
    torch.manual_seed(0)
    return TokenRouter(pair[1].config.hidden_size, ac.VOCAB_SIZE).eval()


def alone(lm, prompt) -> list[int]:
    row = greedy(lm, torch.tensor([prompt]), NEW)[0].tolist()
    return row[:row.index(ac.EOS) + 1] if ac.EOS in row else row


# -- what a right method must satisfy, as checks that wrong ones fail ------------------------------------------------------------

def check_large_cache(large, run, prompt) -> None:
    """The large model's cache equals a fresh reading of the text that was really written."""
    seen = int(run.large_cache.num_seen[0])
    if not seen:
        return                                                        # it was never called
    fresh = large.new_cache()
    large(torch.tensor([(list(prompt) + run.tokens)[:seen]]), fresh)
    for layer in range(large.config.num_layers):
        for mine, other in ((run.large_cache.keys, fresh.keys), (run.large_cache.values, fresh.values)):
            torch.testing.assert_close(mine[layer][:, :, :seen], other[layer][:, :, :seen], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chain", PROBLEMS[:3], ids=range(3))
def test_threshold_0_is_the_large_model_and_2_the_small_one(pair, router, chain):
    large, small = pair
    for threshold, model in ((0.0, large), (2.0, small)):
        run = r2r.R2R(threshold).generate(chain.prompt(), pair, router, NEW)
        assert run.tokens == alone(model, chain.prompt())
        assert run.large_share == (threshold == 0)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 50), share=st.sampled_from([0.1, 0.3, 0.6]))
def test_the_large_cache_is_a_fresh_reading_of_the_text(seed, share):
    large, small = random_chain_lm(1, 48), random_chain_lm(2)
    prompt = ac.chains(seed, 1)[0].prompt()
    run = generate_pair(small, large, prompt, r2r.each_step(r2r.random_scores(seed)), 1 - share, NEW)
    check_large_cache(large, run, prompt)
    calls = [i for i, writer in enumerate(run.writers) if writer == LARGE]
    assert np.cumsum(run.large_read).tolist() == [len(prompt) + i for i in calls]


def test_a_cache_that_read_the_rejected_token_is_found_out(pair):
    large, small = pair
    prompt = PROBLEMS[0].prompt()
    run = generate_pair(small, large, prompt, r2r.each_step(r2r.random_scores(3)), 0.5, NEW)
    calls = [i for i, w in enumerate(run.writers) if w == LARGE and run.proposed[i] != run.tokens[i]]
    assert len(calls) > 1
    text = prompt + run.tokens
    at = len(prompt) + calls[0]
    seen = int(run.large_cache.num_seen[0])
    run.large_cache.rewind(0)
    large(torch.tensor([(text[:at] + [run.proposed[calls[0]]] + text[at + 1:])[:seen]]), run.large_cache)     # the rejected token
    with pytest.raises(AssertionError):
        check_large_cache(large, run, prompt)


def test_routing_all_differences_writes_the_large_models_text(pair):
    large, small = pair
    for chain in PROBLEMS[:3]:
        run = generate_pair(small, large, chain.prompt(), r2r.different(large), 1.0, NEW)
        assert run.tokens == alone(large, chain.prompt())
        assert [w == LARGE for w in run.writers] == [p != t for p, t in zip(run.proposed, run.tokens)]


def test_with_the_same_model_twice_no_position_differs(pair):
    large, _ = pair
    for one in label_answers(large, large, PROBLEMS[:3]):
        assert set(one.kind) == {IDENTICAL}
    run = generate_pair(large, large, PROBLEMS[0].prompt(), r2r.oracle(large), 1.0, NEW)
    assert run.large_share == 0


@pytest.mark.parametrize("gamma", [1, 2, 4, 7])
def test_speculative_decoding_is_lossless(pair, gamma):
    large, small = pair
    for chain in PROBLEMS[:3]:
        run = r2r.speculative(small, large, chain.prompt(), gamma, NEW)
        assert run.tokens == alone(large, chain.prompt())
    same = r2r.speculative(large, large, PROBLEMS[0].prompt(), gamma, NEW)
    assert same.tokens == alone(large, PROBLEMS[0].prompt()) and len(same.large_read) == -(-len(same.tokens) // (gamma + 1))


def test_the_batch_routes_as_the_loop_does(pair, router, monkeypatch):
    large, small = pair
    monkeypatch.setattr(r2r_measure, "MAX_ANSWER", NEW)
    score = r2r.router_scores(router, small)
    threshold = float(np.median(r2r_measure.write_routed(small, large, PROBLEMS[:1], score, 2.0)[0].scores))
    for chain, text in zip(PROBLEMS, r2r_measure.write_routed(small, large, PROBLEMS, score, threshold)):
        run = generate_pair(small, large, chain.prompt(), r2r.each_step(score), threshold, NEW)
        assert (text.tokens, text.writers, text.large_read) == (run.tokens, run.writers, run.large_read)
        np.testing.assert_allclose(text.scores, run.scores, atol=1e-5)


# -- labels ------------------------------------------------------------------------------------------------------------------------

def test_labels_in_batches_are_the_labels_one_by_one(pair):
    large, small = pair
    answers = [alone(large, chain.prompt()) for chain in PROBLEMS]
    for one in label_answers(large, small, PROBLEMS, batch=4, answers=answers):
        for i, (token, kind) in enumerate(zip(one.proposed, one.kind)):
            at = one.num_prompt + i
            if i < NEW - 21:                                          # nearer to the cut of the text the sentence is not all there
                assert kind == label(large, one.text[:at], token, one.text[at])


def test_a_sentence_ends_with_its_full_stop_or_the_text(pair):
    large, _ = pair
    text = PROBLEMS[0].prompt() + [ac.ID["so"]]
    sentence = finish_sentence(large, text)
    assert sentence[0] == ac.ID["so"] and not {ac.STOP, ac.EOS} & set(sentence[:-1])
    assert finish_sentence(large, text + [ac.STOP]) == [ac.ID["so"], ac.STOP]


# -- costs, scores, threshold ---------------------------------------------------------------------------------------------------------

def test_costs_of_a_worked_example():
    # 10 tokens behind a prompt of 5: the large model is called twice and reads 5 + 3 and 4 tokens; sizes 100, 10 and 1.
    cost = r2r.cost_of(10, 5, [8, 4], 10, 100, 10, 1)
    assert cost == r2r.PairCost(activated=10 + 1 + 0.2 * 100, flops=2 * (100 * 12 + 10 * 15 + 1 * 10) / 10, calls=0.2, read=1.2)
    assert r2r.cost_of(10, 5, [5] + [1] * 9, 0, 100, 10) == r2r.PairCost(100.0, 2 * 100 * 14 / 10, 1.0, 1.4)


def test_uncertainty_is_highest_for_equal_logits():
    flat, sharp = torch.zeros(1, 34), torch.zeros(1, 34)
    sharp[0, 3] = 20.0
    assert float(r2r.entropy(flat, flat)) == pytest.approx(np.log(34)) and float(r2r.entropy(flat, sharp)) < 1e-5
    spread = torch.tensor([[9.0, 9, 9, 9, 9, 9, 9, 9, 9, 9] + [0.0] * 24])
    single = torch.tensor([[9.0] + [0.0] * 33])
    assert float(r2r.log_u(spread, spread)) > float(r2r.log_u(single, single))
    with pytest.raises(ValueError, match="count is 40, but there are 34 logits"):
        r2r.log_u(flat, flat, 40)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), recall=st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_the_threshold_is_the_best_of_the_hundred(seed, recall):
    generator = torch.Generator().manual_seed(seed)
    divergent = torch.rand(60, generator=generator) < 0.2
    divergent[:2] = torch.tensor([True, False])
    scores = (torch.rand(60, generator=generator) + 0.3 * divergent) / 1.3
    chosen = choose_threshold(scores, divergent, recall)
    allowed = [t for t in np.linspace(0, 1, 100) if sum(scores[divergent] >= t) >= recall * int(divergent.sum()) - 1e-9]
    assert chosen == max(allowed)                                     # higher thresholds never route more
    assert rates(scores, divergent, chosen)[1] == min(rates(scores, divergent, t)[1] for t in allowed)


def test_a_router_learns_what_can_be_told_from_the_state(pair):
    """Labels planted as a function of the proposed token are found; the threshold then separates them."""
    large, small = pair
    answers = [alone(large, chain.prompt()) for chain in PROBLEMS]
    labelled = label_answers(large, small, PROBLEMS, answers=answers)
    planted = [type(one)(one.text, one.num_prompt, one.proposed, [DIVERGENT * (token % 3 == 0) for token in one.proposed])
               for one in labelled]
    from frugal.early_exit.r2r_router import scores_of
    scores, divergent = scores_of(fit(small, planted, epochs=40), small, planted)
    found, false = rates(scores, divergent, choose_threshold(scores, divergent))
    assert found >= 0.95 and false < 0.1
    with pytest.raises(ValueError, match="none of .* tokens is divergent"):
        fit(small, [type(one)(one.text, one.num_prompt, one.proposed, [IDENTICAL] * len(one.kind)) for one in labelled])


def test_answers_of_a_batch_are_those_of_each_alone(pair):
    large, _ = pair
    for chain, tokens in zip(PROBLEMS, write_answers(large, PROBLEMS, batch=4)):
        assert tokens[:NEW] == alone(large, chain.prompt())
    answers = [ac.write_solution(chain, np.random.default_rng(0)) for chain in PROBLEMS]
    assert right_share(answers, PROBLEMS) == 1.0 and right_share([[ac.EOS]] * 6, PROBLEMS) == 0.0


def test_wilson_intervals():
    assert r2r_measure.wilson(0, 10)[0] == 0.0 and r2r_measure.wilson(10, 10)[1] == 1.0
    low, high = r2r_measure.wilson(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)    # the textbook's example
    with pytest.raises(ValueError, match="count is 0"):
        r2r_measure.wilson(0, 0)


@pytest.mark.parametrize("call, message", [
    (lambda pair: r2r.R2R(threshold=3.0), "threshold is 3.0; it is a probability"),
    (lambda pair: r2r.R2R(threshold=-0.1), "threshold is -0.1"),
    (lambda pair: r2r.R2R(0.5).generate([], pair, TokenRouter(32, 34)), "the prompt is empty"),
    (lambda pair: r2r.speculative(pair[1], pair[0], [1, 2], gamma=0), "gamma is 0"),
    (lambda pair: choose_threshold(torch.rand(5), torch.zeros(5, dtype=torch.bool)), "no token is divergent"),
    (lambda pair: choose_threshold(torch.rand(5), torch.ones(5, dtype=torch.bool)), "every token is divergent"),
    (lambda pair: choose_threshold(torch.rand(5), torch.ones(5, dtype=torch.bool), recall=0.0), "recall is 0.0")])
def test_bad_input_is_named(pair, call, message):
    with pytest.raises(ValueError, match=message):
        call(pair)


def test_two_tokenizers_are_refused(pair):
    from frugal.core.lm import random_lm
    with pytest.raises(ValueError, match="different tokenizers"):
        label_answers(random_lm(vocab_size=300), pair[1], PROBLEMS[:1])
