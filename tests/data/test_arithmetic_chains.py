"""The language of arithmetic chains: exact values, every style parses to the same meaning, wrong sentences mean something else."""
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugal.data import arithmetic_chains as ac

TOKENIZER = ac.ChainTokenizer()


def meaning(text):
    return ac.parse_sentence(TOKENIZER.encode(text, special=False))


def test_a_worked_example():
    chain = ac.Chain(47, (("+", 32), ("-", 85), ("+", 19)))
    assert chain.values == [79, 994, 13] and chain.answer == 13
    assert TOKENIZER.decode(chain.prompt()) == "<bos> 047 (1) + 32 (2) - 85 (3) + 19 ?"
    assert meaning("so (1) 047 plus 32 equals 079 .") == ac.Meaning(1, "+", 47, 32, 79)
    assert meaning("then (2) lowering 079 by 85 gives 994 .") == ac.Meaning(2, "-", 79, 85, 994)
    assert meaning("answer 013 .") == ac.Meaning(None, "answer", None, None, 13)


def test_digits_are_written_from_the_units_up():
    assert [ac.SYMBOLS[token] for token in TOKENIZER.encode("047", special=False)] == ["7", "4", "0"]


@given(seed=st.integers(0, 10_000), num_steps=st.integers(1, ac.MAX_STEPS))
def test_a_solution_says_the_steps_of_the_problem(seed, num_steps):
    rng = np.random.default_rng(seed)
    chain = ac.random_chain(rng, num_steps)
    tokens = ac.write_solution(chain, rng)
    value, said = chain.start, []
    for number, (sign, operand) in enumerate(chain.steps, 1):                     # by hand, not by Chain.values
        after = (value + {"+": 1, "-": -1}[sign] * operand) % 1000
        said.append(ac.Meaning(number, sign, value, operand, after))
        value = after
    sentences = [list(part) + [ac.STOP] for full, part in itertools.groupby(tokens[:-1], lambda t: t == ac.STOP) if not full]
    assert [ac.parse_sentence(one) for one in sentences] == [*said, ac.Meaning(None, "answer", None, None, value)]
    assert tokens[-1] == ac.EOS and ac.final_answer(tokens) == value == chain.answer
    assert len(tokens) <= ac.MAX_ANSWER and len(chain.prompt()) + len(tokens) <= ac.MAX_TOKENS
    assert TOKENIZER.encode(TOKENIZER.decode(tokens), special=False) == tokens


def test_all_styles_of_a_step_mean_the_same():
    bodies = [f"047 {word} 32" for word in ac.INFIX["+"]] + ["adding 047 and 32"]
    texts = [f"{lead} (1) {body} {equals} 079 ." for lead in ac.LEADS for body in bodies for equals in ac.EQUALS]
    tokens = [TOKENIZER.encode(text, special=False) for text in texts]
    assert len(set(map(tuple, tokens))) == 4 * 3 * 4
    assert all(ac.same_meaning(tokens[0], other) for other in tokens)


@pytest.mark.parametrize("other", [
    "so (1) 047 plus 32 equals 089 .",              # another value: a slip of the tens
    "so (1) 047 plus 33 equals 079 .",              # another operand
    "so (2) 047 plus 32 equals 079 .",              # another step
    "so (1) 047 minus 32 equals 079 .",             # another operation
    "so (1) lowering 047 by 32 equals 079 .",
    "answer 079 ."])
def test_what_differs_in_substance_does_not_mean_the_same(other):
    one, two = (TOKENIZER.encode(text, special=False) for text in ("so (1) 047 plus 32 equals 079 .", other))
    assert not ac.same_meaning(one, two) and ac.parse_sentence(two) is not None


@pytest.mark.parametrize("text", ["so 047 plus 32 equals 079 .", "so (1) 047 32 equals 079 .", "so (1) 047 plus 32 equals 79 .",
                                  "(1) 047 plus 32 equals 079 .", "so (1) 047 plus 32 equals 079", "so (1) adding 047 by 32 is 079 .",
                                  "answer 13 .", "so . .", "."])
def test_what_is_no_sentence_means_only_itself(text):
    tokens = TOKENIZER.encode(text, special=False)
    assert ac.parse_sentence(tokens) is None and ac.same_meaning(tokens, tokens)
    assert not ac.same_meaning(tokens, tokens + [ac.STOP])


def test_the_sentence_of_a_place():
    prompt = ac.Chain(1, (("+", 2),)).prompt()
    text = prompt + TOKENIZER.encode("so (1) 001 plus 02 is 003 . answer 003 .", special=False)
    starts = [ac.sentence_start(text, at) for at in range(len(text))]
    first, second = len(prompt), text.index(ac.STOP) + 1
    assert starts == [0] * first + [first] * (second - first) + [second] * (len(text) - second)


def test_the_final_answer_needs_an_answer_sentence():
    assert ac.final_answer(TOKENIZER.encode("so (1) 001 plus 02 is 003 .")) is None
    assert ac.final_answer(TOKENIZER.encode("answer 003")) is None
    assert ac.final_answer(TOKENIZER.encode("answer 003 . answer 004 .")) == 3


def test_training_rows_learn_the_solution_and_nothing_else():
    tokens, learn = ac.training_rows(np.random.default_rng(3), 40)
    for row, own in zip(tokens.tolist(), learn.tolist()):
        start = row.index(ac.ASK) + 1
        stop = row.index(ac.EOS) + 1
        assert own == [start <= i < stop for i in range(len(row))] and set(row[stop:]) <= {ac.PAD}


def test_problems_depend_on_the_seed_alone_and_are_uniform():
    assert ac.chains(5, 20) == ac.chains(5, 30)[:20] != ac.chains(6, 20)
    lengths = [len(chain.steps) for chain in ac.chains(0, 600)]
    assert set(lengths) == {3, 4, 5} and min(map(lengths.count, (3, 4, 5))) > 150


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="num_steps is 6; it must be 1..5"):
        ac.random_chain(np.random.default_rng(0), 6)
    with pytest.raises(ValueError, match="'hello' is not a word of the language"):
        TOKENIZER.encode("hello")
