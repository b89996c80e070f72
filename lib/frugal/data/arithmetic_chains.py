"""Chains of arithmetic written as sentences: a reasoning language in which "same meaning" is decidable.

Source: the role of the reasoning text and of the verifier in arXiv 2505.21600 (R2R), section on token labelling.
Differs: a synthetic language in place of mathematics in prose, and an exact parser in place of a 72B verifier model. The tokens of
a number run from its units up, as one adds by hand: a small model then learns to carry in minutes. Text shows numbers as usual.

A problem is a start value and three to five operations with two-digit operands, all modulo 1000:

    047 (1) + 32 (2) - 85 (3) + 19 ?
    so (1) 047 plus 32 equals 079 . then (2) lowering 079 by 85 gives 994 . now (3) 994 added to 19 is 013 . answer 013 .

Digits are tokens (047 is the three tokens 7 4 0). Each step is one sentence that names its number. How it opens, how it names the
operation, and its word for "equals" are drawn at random, so these tokens cannot be predicted and do not matter. Two
sentences mean the same when number, operation, operands and value are the same.
"""
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MODULUS = 1000
MIN_STEPS, MAX_STEPS = 3, 5
LEADS = ("so", "then", "now", "thus")
INFIX = {"+": ("plus", "added to"), "-": ("minus", "less")}             # 047 plus 32
PREFIX = {"+": ("adding", "and"), "-": ("lowering", "by")}              # adding 047 and 32
EQUALS = ("equals", "gives", "is", "makes")
NUMBERS = tuple(f"({i + 1})" for i in range(MAX_STEPS))
SYMBOLS = ("<pad>", "<bos>", "<eos>", "?", ".", "answer", *"0123456789", *"+-", *NUMBERS, *LEADS, *INFIX["+"], *INFIX["-"],
           *PREFIX["+"], *PREFIX["-"], *EQUALS)
ID = {symbol: i for i, symbol in enumerate(SYMBOLS)}
PAD, BOS, EOS, ASK, STOP, ANSWER = range(6)
FIRST_DIGIT = ID["0"]
VOCAB_SIZE = len(SYMBOLS)
MAX_ANSWER = 14 * MAX_STEPS + 6                                         # tokens of the longest solution
MAX_TOKENS = 2 + 3 + 4 * MAX_STEPS + MAX_ANSWER                         # of a problem with its longest solution
STYLE = frozenset(ID[word] for word in (*LEADS, *INFIX["+"], *INFIX["-"], *PREFIX["+"], *PREFIX["-"], *EQUALS))


@dataclass(frozen=True)
class Chain:
    """One problem: a start value 0..999 and operations ("+" or "-", operand 0..99)."""
    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def values(self) -> list[int]:
        """The exact value after each step, each 0..999."""
        out, value = [], self.start
        for sign, operand in self.steps:
            value = (value + operand if sign == "+" else value - operand) % MODULUS
            out.append(value)
        return out

    @property
    def answer(self) -> int:
        """The value after the last step."""
        return self.values[-1]

    def prompt(self) -> list[int]:
        """Token ids of `<bos> 047 (1) + 32 ... ?`."""
        out = [BOS, *_digits(self.start, 3)]
        for number, (sign, operand) in zip(NUMBERS, self.steps):
            out += [ID[number], ID[sign], *_digits(operand, 2)]
        return [*out, ASK]


def random_chain(rng: np.random.Generator, num_steps: int | None = None, most: int = 9) -> Chain:
    """A uniform problem of `num_steps` operations (None: three to five at random); digits of the operands are 0..most.

    ValueError for steps outside 1..5 or digits outside 0..9.
    """
    if not 0 <= most <= 9:
        raise ValueError(f"most is {most}; the largest digit of an operand must be 0..9")
    num_steps = int(rng.integers(MIN_STEPS, MAX_STEPS + 1)) if num_steps is None else num_steps
    if not 1 <= num_steps <= MAX_STEPS:
        raise ValueError(f"num_steps is {num_steps}; it must be 1..{MAX_STEPS}, what a text of {MAX_TOKENS} tokens holds")
    signs, tens, units = rng.integers(0, (2, most + 1, most + 1), size=(num_steps, 3)).T.tolist()
    return Chain(int(rng.integers(MODULUS)), tuple(("+-"[s], 10 * t + u) for s, t, u in zip(signs, tens, units)))


def chains(seed: int, count: int, num_steps: int | None = None) -> list[Chain]:
    """`count` problems of one seed. A problem depends on the seed and its place alone."""
    rng = np.random.default_rng(seed)
    return [random_chain(rng, num_steps) for _ in range(count)]


def write_solution(chain: Chain, rng: np.random.Generator) -> list[int]:
    """Token ids of a correct solution in random style, `<eos>` included."""
    out: list[int] = []
    value = chain.start
    draws = rng.integers(0, 4, size=(len(chain.steps), 4)).tolist()
    for number, (sign, operand), result, (lead, order, word, equals) in zip(NUMBERS, chain.steps, chain.values, draws):
        opening, between = ((), INFIX[sign][word % 2]) if order < 2 else (PREFIX[sign][:1], PREFIX[sign][1])
        out += [ID[LEADS[lead]], ID[number], *(ID[verb] for verb in opening), *_digits(value, 3), ID[between], *_digits(operand, 2)]
        out += [ID[EQUALS[equals]], *_digits(result, 3), STOP]
        value = result
    return [*out, ANSWER, *_digits(value, 3), STOP, EOS]


@dataclass(frozen=True)
class Meaning:
    """What a sentence says: step `number` is left (sign) right = value. An `answer` sentence has the sign "answer", the rest None."""
    number: int | None
    sign: str
    left: int | None
    right: int | None
    value: int


def parse_sentence(tokens: Sequence[int]) -> Meaning | None:
    """The meaning of one sentence that ends with its full stop; None when it is not a sentence of the language.

    The value is taken as written: a wrong sum parses, and means something else than the right one.
    """
    words = [SYMBOLS[token] for token in tokens]
    if len(words) == 5 and words[0] == "answer" and words[4] == ".":
        value = _number(words[1:4])
        return None if value is None else Meaning(None, "answer", None, None, value)
    if (len(words) < 13 or words[0] not in LEADS or words[1] not in NUMBERS or words[-5] not in EQUALS
            or words[-1] != "."):
        return None
    body, value = words[2:-5], _number(words[-4:-1])
    left, right = _number(body[-6:-3]), _number(body[-2:])
    for sign in "+-":
        verb, between = PREFIX[sign]
        if not (len(body) == 6 and body[3] in INFIX[sign] or len(body) == 7 and (body[0], body[4]) == (verb, between)):
            continue
        return None if None in (left, right, value) else Meaning(1 + NUMBERS.index(words[1]), sign, left, right, value)
    return None


def same_meaning(first: Sequence[int], second: Sequence[int]) -> bool:
    """The exact verifier: same step, operation, operands and value. What does not parse has no meaning but its own tokens."""
    one, two = parse_sentence(first), parse_sentence(second)
    return list(first) == list(second) if one is None or two is None else one == two


def sentence_start(tokens: Sequence[int], place: int) -> int:
    """Index of the first token of the sentence that `place` belongs to: behind the last `?` or full stop before it."""
    for at in range(place - 1, -1, -1):
        if tokens[at] in (STOP, ASK):
            return at + 1
    return 0


def final_answer(tokens: Sequence[int]) -> int | None:
    """The value of the first `answer` sentence of a text, or None when there is none."""
    tokens = list(tokens)
    if ANSWER not in tokens:
        return None
    at = tokens.index(ANSWER)
    found = parse_sentence(tokens[at:at + 5])
    return None if found is None else found.value


class ChainTokenizer:
    """Symbols as tokens. Text has blanks between words and none inside numbers."""
    vocab_size, bos_id, eos_id = VOCAB_SIZE, BOS, EOS

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `047 (1) + 32 ?` or of sentences; ValueError names a word that is not in the language."""
        out = [BOS] if special else []
        words = text.replace("added to", "added_to").split()
        for word in words:
            parts = list(reversed(word)) if word.isdigit() else [word.replace("_", " ")]
            unknown = [part for part in parts if part not in ID]
            if unknown:
                raise ValueError(f"{unknown[0]!r} is not a word of the language; it has: {' '.join(SYMBOLS)}")
            out += [ID[part] for part in parts]
        return out

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of token ids; digits in a row are one number, its units last."""
        words: list[str] = []
        for symbol in (SYMBOLS[int(token)] for token in ids):
            if symbol.isdigit() and words and words[-1].isdigit():
                words[-1] = symbol + words[-1]
            elif not (skip_special and symbol.startswith("<")):
                words.append(symbol)
        return " ".join(words)

    def token_str(self, token: int) -> str:
        return SYMBOLS[token]


def training_rows(rng: np.random.Generator, count: int, steps: tuple[int, int] = (MIN_STEPS, MAX_STEPS), most: int = 9
                  ) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, learn), each (count, T), right-padded: problems with solutions, and which tokens belong to the solution.

    steps: fewest and most operations. most: each problem's operands have digits up to a number drawn from 1..most, so small digits
    are frequent: of digits that are uniform, neither operand alone says anything about their sum modulo 10, and learning stalls.
    """
    rows, starts = [], []
    for _ in range(count):
        chain = random_chain(rng, int(rng.integers(steps[0], steps[1] + 1)), int(rng.integers(1, most + 1)))
        prompt = chain.prompt()
        rows.append(prompt + write_solution(chain, rng))
        starts.append(len(prompt))
    lengths = np.array([len(row) for row in rows])
    tokens = np.full((count, lengths.max()), PAD)
    for i, row in enumerate(rows):
        tokens[i, :len(row)] = row
    place = np.arange(lengths.max())
    return tokens, (place >= np.array(starts)[:, None]) & (place < lengths[:, None])


def data_hash(seed: int = 0, count: int = 64) -> str:
    """sha256 of the first training rows of a seed: tells whether the language is still the same."""
    tokens, learn = training_rows(np.random.default_rng(seed), count)
    return hashlib.sha256(tokens.astype("<i8").tobytes() + learn.tobytes()).hexdigest()


def _digits(value: int, width: int) -> list[int]:
    return [FIRST_DIGIT + int(c) for c in reversed(f"{value:0{width}d}")]


def _number(words: Sequence[str]) -> int | None:
    return int("".join(reversed(words))) if all(word.isdigit() for word in words) else None
