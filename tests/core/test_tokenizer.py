"""The tokenizer: equal to transformers' and to a spelled-out BPE, line by line on mixed text."""
import importlib.util
import random
import re
import string
import unicodedata
from pathlib import Path

import gguf
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from frugal.core.fetch import fetch
from frugal.core.tokenizer import Tokenizer

NUM_LINES = 10_000
SCRIPTS = {"latin": (0xC0, 0x17F), "greek": (0x391, 0x3C9), "cyrillic": (0x410, 0x44F), "hebrew": (0x5D0, 0x5EA),
           "arabic": (0x621, 0x64A), "devanagari": (0x905, 0x939), "thai": (0xE01, 0xE3A), "kana": (0x3041, 0x30F6),
           "han": (0x4E00, 0x9FA5), "hangul": (0xAC00, 0xD7A3), "math": (0x2200, 0x22FF), "arrows": (0x2190, 0x21FF)}
EMOJI = ["😀", "🚀", "👩‍👩‍👧", "🇫🇷", "👍🏽", "❤️", "🧑‍🚒", "1️⃣", "🏴‍☠️"]
NUMBERS = ["0", "7", "42", "1999", "3.14159", "1,000,000", "0x1F", "1e-9", "٣٤٥", "२०२४", "²³", "½", "Ⅷ", "10:45"]
SPACES = [" ", "  ", "    ", "\t", "\t\t", " \t ", "\u00a0", "\u2003", "\r\n", "\n\n\n", "\u3000", " \n "]
WORDS = ["don't", "I'll", "it's", "WE'VE", "they'd", "he'S", "naïve", "x_1", "__init__", "e-mail", "C++", "a.b(c)", "—", "…"]
SOURCES = ["argparse", "ast", "collections", "csv", "datetime", "difflib", "email.message", "fractions", "html.entities",
           "inspect", "json.decoder", "locale", "pathlib", "statistics", "textwrap", "turtle", "unittest.mock"]


def mixed_lines(special: list[str]) -> list[str]:
    """10,000 lines, always the same: half of them code of the standard library, half made up in many scripts."""
    lines: list[str] = []
    for name in SOURCES:
        lines += Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8").splitlines()
    rng = random.Random(7)
    lines = rng.sample(lines, NUM_LINES // 2)
    makers = [lambda: rng.choice(EMOJI), lambda: rng.choice(NUMBERS), lambda: rng.choice(WORDS),
              lambda: "".join(rng.choices(string.ascii_letters, k=rng.randint(1, 12))),
              lambda: "".join(rng.choices(string.punctuation, k=rng.randint(1, 5))),
              lambda: "".join(chr(rng.randint(*span)) for span in [rng.choice(list(SCRIPTS.values()))]
                              for _ in range(rng.randint(1, 8)))]
    while len(lines) < NUM_LINES:
        line = "".join(rng.choice(makers)() + rng.choice(SPACES + [""] * 6) for _ in range(rng.randint(1, 14)))
        lines.append(rng.choice(SPACES + [""] * 4) + line + (rng.choice(special) if rng.random() < 0.1 else ""))
    return lines


@pytest.fixture(scope="module")
def metadata(smollm2):
    reader = gguf.GGUFReader(fetch("smollm2-135m", progress=False))
    return {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.")}


@pytest.fixture(scope="module")
def special(metadata):
    kinds = metadata["tokenizer.ggml.token_type"]
    return [token for token, kind in zip(metadata["tokenizer.ggml.tokens"], kinds, strict=True) if kind == 3]


@pytest.fixture(scope="module")
def reference(metadata, special):
    """transformers' GPT-2 tokenizer with SmolLM2's vocabulary and its cutting rule: digits one by one."""
    transformers = pytest.importorskip("transformers")
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = transformers.GPT2Tokenizer(vocab=vocab, merges=merges, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                           unk_token="<|endoftext|>", pad_token="<|im_end|>",
                                           additional_special_tokens=special, clean_up_tokenization_spaces=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.chat_template = metadata["tokenizer.chat_template"]
    return tokenizer


@pytest.mark.model
def test_equals_transformers_on_ten_thousand_mixed_lines(smollm2, reference, special):
    lines = mixed_lines(special)
    assert len(lines) == NUM_LINES and len(set(lines)) > 0.8 * NUM_LINES
    for line, ids in zip(lines, reference(lines).input_ids, strict=True):
        assert smollm2.tokenizer.encode(line) == ids, line
        assert smollm2.tokenizer.decode(ids) == line == reference.decode(ids)
        assert smollm2.tokenizer.decode(ids, skip_special=True) == reference.decode(ids, skip_special_tokens=True)


def cut(text: str) -> list[str]:
    """GPT-2's pattern over letters (L), numbers (N), white space (s, the blank ' ') and the rest (o), digits alone."""
    whites = "\t\n\x0b\x0c\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
    kinds = "".join(" " if c == " " else "s" if c in whites else k if (k := unicodedata.category(c)[0]) in "LN" else "o"
                    for c in text)
    pieces, at = [], 0
    for number in re.finditer("N|[^N]+", kinds):        # a number on its own, then each stretch between numbers
        stretch, end = kinds[:number.end()], number.end()
        while at < end:
            short = re.compile("'(?:s|t|re|ve|m|ll|d)").match(text[:end], at)
            found = short or re.compile(r" ?L+| ?N+| ?o+|[ s]+(?![LNo])|[ s]+").match(stretch, at)
            pieces.append(text[at:found.end()])
            at = found.end()
    return pieces


def spelled_out_bpe(text: str, vocab: dict[str, int], ranks: dict[str, int]) -> list[int]:
    """Merge the pair of lowest rank, leftmost first, until none is left."""
    letters = byte_letters()
    ids = []
    for piece in cut(text):
        word = [letters[byte] for byte in piece.encode("utf-8")]
        while len(word) > 1:
            rank, i = min((ranks.get(f"{a} {b}", 1 << 30), i) for i, (a, b) in enumerate(zip(word, word[1:], strict=False)))
            if rank == 1 << 30:
                break
            word[i:i + 2] = [word[i] + word[i + 1]]
        ids += [vocab[part] for part in word]
    return ids


def byte_letters() -> list[str]:
    """GPT-2's visible letter for each byte: printable ones stand for themselves, the others follow from U+0100."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


@pytest.mark.model
def test_equals_a_spelled_out_bpe(smollm2, metadata, special):
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {merge: i for i, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    for line in random.Random(3).sample(mixed_lines(special), 2_000):
        assert smollm2.tokenizer.encode(line, special=False) == spelled_out_bpe(line, vocab, ranks), line


@pytest.mark.model
def test_a_cutting_rule_without_single_digits_is_noticed(smollm2, metadata, reference):
    wrong = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": "gpt-2"})
    text = "²³ ½"       # only the vocabulary keeps SmolLM2 from merging 1999, but not the blank with a half
    assert wrong.encode(text) != reference(text).input_ids == smollm2.tokenizer.encode(text)


@pytest.mark.model
def test_special_tokens_are_one_token_or_plain_text(smollm2, special):
    tok = smollm2.tokenizer
    for i, token in enumerate(special):
        assert tok.encode(token) == [i] and tok.token_str(i) == token
        plain = tok.encode(token, special=False)
        assert len(plain) > 1 and not set(plain) & set(range(len(special))) and tok.decode(plain) == token
    assert (tok.bos_id, tok.eos_id, tok.vocab_size, tok.encode("")) == (1, 2, 49152, [])
    assert tok.token_str(tok.encode(" the")[0]) == " the"
    with pytest.raises(ValueError, match="49152 is not in 0..49151"):
        tok.token_str(49152)


@pytest.mark.model
def test_chat_equals_transformers(smollm2, reference):
    tok, user = smollm2.tokenizer, {"role": "user", "content": "Hi, 2+2?"}
    for messages in ([user], [{"role": "system", "content": "Be brief."}, user],
                     [user, {"role": "assistant", "content": "4"}, user]):
        for prompt in (True, False):
            text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert tok.chat(messages, add_generation_prompt=prompt) == text
    assert tok.chat([user]).endswith("<|im_start|>user\nHi, 2+2?<|im_end|>\n<|im_start|>assistant\n")


def byte_metadata(**more):
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<tool>"]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3, 3, *[1] * 256, 4], "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1} | more


def test_a_begin_token_is_added_once_where_the_model_wants_it():
    tok = Tokenizer.from_gguf(byte_metadata(**{"tokenizer.ggml.add_bos_token": True,
                                               "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}"}))
    plain = Tokenizer.from_gguf(byte_metadata())
    assert tok.encode("a") == [0, *plain.encode("a")] and tok.encode("a", special=False) == plain.encode("a")
    assert tok.encode(tok.chat([{"role": "user", "content": "a"}])) == tok.encode("a")
    assert plain.encode("a<tool>") == [*plain.encode("a"), 258]


def test_chat_without_a_template_is_chatml():
    assert Tokenizer.from_gguf(byte_metadata()).chat([{"role": "user", "content": "a"}], add_generation_prompt=False) \
        == "<|im_start|>user\na<|im_end|>\n"


def test_a_template_cannot_reach_into_python():
    tok = Tokenizer.from_gguf(byte_metadata(**{"tokenizer.chat_template": "{{ ''.__class__.__mro__ }}"}))
    with pytest.raises(Exception, match="unsafe"):
        tok.chat([])


@pytest.mark.parametrize("wrong", [{"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.pre": "deepseek-llm"}])
def test_other_kinds_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values())) + ".*tokenizer.json"):
        Tokenizer.from_gguf(byte_metadata(**wrong))


def test_a_folder_gives_the_same_tokenizer(tmp_path):
    tok = Tokenizer.from_gguf(byte_metadata())
    tokenizers.Tokenizer.from_str(tok.to_json()).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages|length }}"}')
    again = Tokenizer.from_folder(tmp_path, bos_id=0, eos_id=1)
    assert again.encode("naïve 12 😀<s>") == tok.encode("naïve 12 😀<s>") and again.chat([{}, {}]) == "2"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}")
    assert Tokenizer.from_folder(tmp_path, bos_id=0, eos_id=1).chat([]) == "</s>"
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
