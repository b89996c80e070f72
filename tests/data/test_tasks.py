import re

import pytest
import torch
from hypothesis import given, settings, strategies as st

from frugal.data.tasks import COLOURS, NAMES, Question, continuation, copying, facts, passkey


class Words:
    """A tokenizer of words with their blanks; `tokens` are the words met so far."""

    def __init__(self):
        self.ids = {}

    @property
    def vocab_size(self):
        return len(self.ids)

    def encode(self, text):
        return [self.ids.setdefault(word, len(self.ids)) for word in re.findall(r"\s*\S+|\s+$", text)]

    def decode(self, ids):
        words = list(self.ids)
        return "".join(words[id] for id in ids)


@settings(max_examples=40, deadline=None)
@given(n_tokens=st.integers(40, 900), seed=st.integers(0, 2**32), twice=st.booleans())
def test_passkey_fills_its_length_and_says_the_key_as_often_as_asked(n_tokens, seed, twice):
    tokenizer = Words()
    made = passkey(n_tokens, seed, tokenizer, stated_twice=twice)
    length = len(tokenizer.encode(made.context))
    assert n_tokens - 5 < length <= n_tokens               # one sentence of filler has at most five words
    key = made.answer.strip()
    assert re.fullmatch(r"\d{5}", key) and made.context.count(key) == (2 if twice else 1)
    assert not re.search(r"\d", made.question) and made == passkey(n_tokens, seed, tokenizer, stated_twice=twice)


def test_passkeys_differ_in_key_and_place():
    made = [passkey(400, seed, Words()) for seed in range(20)]
    assert len({q.answer for q in made}) == 20
    places = [q.context.index("The pass key") / len(q.context) for q in made]
    assert min(places) < 0.3 and max(places) > 0.7 and min(places) > 0.05


def test_a_passkey_that_does_not_fit_names_the_length():
    with pytest.raises(ValueError, match=r"n_tokens 10 is too small: the pass key with its introduction takes \d+ tokens"):
        passkey(10, 0, Words())


@pytest.mark.parametrize("written, hit", [(" 12345.", True), ("12345", True), ("\n12345 is", True), (" 1234", False),
                                          (" 21345", False), ("", False)])
def test_a_hit_starts_with_the_answer(written, hit):
    assert Question("", "", " 12345").is_hit(written) == hit


@given(num_facts=st.integers(1, len(NAMES)), seed=st.integers(0, 10_000))
def test_facts_can_be_answered_from_the_list(num_facts, seed):
    made = facts(num_facts, seed)
    listed = dict(line.split(": ") for line in made.context.splitlines()[1:])
    asked = made.question.strip().splitlines()[-1].rstrip(":")
    assert len(listed) == num_facts and f" {listed[asked]}" == made.answer
    assert set(made.choices) == {f" {colour}" for colour in COLOURS} and set(listed.values()) <= set(COLOURS)
    assert facts(num_facts, seed) == made


def test_facts_with_filler_reach_the_length():
    tokenizer = Words()
    made = facts(12, 3, tokenizer, n_tokens=300)
    assert made.context.startswith(facts(12, 3).context) and 295 < len(tokenizer.encode(made.context)) <= 300
    assert made.question == facts(12, 3).question
    for settings_ in (dict(num_facts=0), dict(num_facts=len(NAMES) + 1)):
        with pytest.raises(ValueError, match=r"num_facts \d+ is out of range: give 1 to 32"):
            facts(seed=0, **settings_)
    with pytest.raises(ValueError, match="the list of 12 facts takes"):
        facts(12, 3, tokenizer, n_tokens=5)
    with pytest.raises(ValueError, match="n_tokens needs the tokenizer"):
        facts(12, 3, n_tokens=300)


class Alphabet(Words):
    """A fixed vocabulary: odd pieces first and in between, then three-letter words."""

    def __init__(self):
        words = [f" {a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "klmnprstvw"]
        self.ids = {piece: id for id, piece in enumerate(["<s>", "!", " The", " x1", "Repeat", *words[:200], "\n", *words[200:],
                                                          " the", " list", " of", " words.", "\nList:"])}


@settings(deadline=None)
@given(num_tokens=st.integers(2, 200), seed=st.integers(0, 10_000))
def test_every_scored_token_of_a_copy_stands_in_the_context(num_tokens, seed):
    tokenizer = Alphabet()
    made = copying(num_tokens, seed, tokenizer, num_words=300)
    string = made.rest
    text = tokenizer.decode(made.ids)
    assert text == "Repeat the list of words.\nList:" + tokenizer.decode(string) + "\nList:" + tokenizer.decode(string)
    assert made.context[6:-1] == string and len(set(string)) == num_tokens
    assert made.targets == string[1:]
    assert [made.rest[place] for place in made.scored_in_rest] == list(string[:-1])
    assert made == copying(num_tokens, seed, tokenizer, num_words=300)


def test_copying_draws_the_commonest_words_and_nothing_else():
    tokenizer = Alphabet()
    made = [copying(100, seed, tokenizer, num_words=250).rest for seed in range(40)]
    drawn = {id for string in made for id in string}
    assert len(drawn) == 250 and min(drawn) == 5 and max(drawn) == 255 and 205 not in drawn      # 205 is the line feed
    assert len(set(made)) == 40
    with pytest.raises(ValueError, match="num_tokens 400 is out of range: give 2 to 300"):
        copying(400, 0, tokenizer, num_words=300)


def test_a_continuation_scores_what_follows_the_context():
    tokenizer = Words()
    made = continuation(0, tokenizer, num_context=200, num_scored=50)
    assert len(made.ids) == 250 and len(made.context) == 200 and len(made.rest) == 50
    assert made.targets == made.rest and made.scored[0] == 199     # the last context token predicts the first of the rest
    text = tokenizer.decode(made.ids)
    from frugal.data.text import documentation_pages
    assert {page.name: page.text for page in documentation_pages()}[made.name].startswith(text)


def test_continuations_of_different_seeds_are_different_pages():
    tokenizer = Words()
    made = [continuation(seed, tokenizer, 200, 50) for seed in range(12)]
    assert len({task.name for task in made}) == 12 and made[3] == continuation(3, tokenizer, 200, 50)
    with pytest.raises(ValueError, match="no page has 1000100 tokens"):
        continuation(0, tokenizer, 10**6, 100)
    with pytest.raises(ValueError, match="must be at least 1"):
        continuation(0, tokenizer, 0, 100)


def test_with_its_full_cache_smollm2_does_the_tasks(smollm2):
    """The region in which a comparison of methods means something; see the module's first lines."""
    def logits(ids):
        with torch.no_grad():
            return smollm2(torch.tensor([ids]), smollm2.new_cache())[0]
    tokenizer = smollm2.tokenizer
    copy = copying(160, 0, tokenizer)
    assert (logits(copy.ids)[list(copy.scored)].argmax(-1) == torch.tensor(copy.targets)).float().mean() > 0.75
    page = continuation(0, tokenizer)
    loss = torch.nn.functional.cross_entropy(logits(page.ids)[list(page.scored)], torch.tensor(page.targets))
    assert len(page.ids) == 640 and 1.0 < loss < 4.0
    key = passkey(405, 0, tokenizer)
    asked, answer = tokenizer.encode(key.context + key.question), tokenizer.encode(key.answer)
    written = logits([*asked, *answer])[len(asked) - 1:-1].argmax(-1)
    assert key.is_hit(tokenizer.decode(written.tolist()))
