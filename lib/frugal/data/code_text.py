"""Python's standard library as text: what the small language models are trained on, and the slice kept from them.

The corpus is the library sources of CPython 3.11.7 and the pages of its language reference (`frugal.data.text`), cut
into tokens by a byte-level BPE of 2,048 entries trained on it. `recipes/build_code_corpus.py` builds it into the user
cache; only the tokenizer and the held-out slice are kept here, under the Python Software Foundation License
(assets/licences/PSF.txt). Documents are separated by one end-of-text token, which also begins a text.
"""
import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor

from frugal.core.fetch import cache_dir
from frugal.core.tokenizer import Tokenizer

ASSETS = Path(__file__).parent / "assets"
PYTHON_VERSION = "3.11.7"
VOCAB_SIZE, END_OF_TEXT = 2048, 0
TOKENIZER_SHA256 = "8ab3277884f9e46e05091dddf246c1cae583f6de9815b8c920a7c6cbe6abba0e"       # of the uncompressed JSON, as the recipe prints them
HELDOUT_SHA256 = "89e9c33ab5f7b0746e3e092aaa234748782d6ff6d8c0e65f9d89942ba4c19951"
CORPUS_SHA256 = "2984c4ae28e5aaf1f8dfbc4ab38bf0e9db498cf15166a41e1614c43db57449ee"          # of the training tokens as little-endian int16


@dataclass(frozen=True)
class Document:
    """One file of the library or one page of the reference: its name and its text."""

    name: str
    text: str


def _asset(name: str, expected: str) -> str:
    content = gzip.decompress((ASSETS / name).read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"{name} is damaged: sha256 {found} instead of {expected}; reinstall frugal")
    return content.decode()


@lru_cache
def code_tokenizer() -> Tokenizer:
    """The BPE of the small language models: 2,048 entries, digits apart, id 0 begins and ends a text."""
    return Tokenizer(_asset("code_tokenizer.json.gz", TOKENIZER_SHA256), {"bos_id": END_OF_TEXT, "eos_id": END_OF_TEXT})


@lru_cache
def heldout_documents() -> tuple[Document, ...]:
    """Library modules and reference pages that no model here was trained on, by name (about 100 kB)."""
    return tuple(Document(name, text) for name, text in json.loads(_asset("code_heldout.json.gz", HELDOUT_SHA256)).items())


def encode_documents(documents, tokenizer: Tokenizer) -> Int[Tensor, "tokens"]:
    """All documents in a row, each behind one end-of-text token."""
    ids = []
    for document in documents:
        ids += [END_OF_TEXT, *tokenizer.encode(document.text, special=False)]
    return torch.tensor(ids)


@lru_cache
def heldout_tokens() -> Int[Tensor, "tokens"]:
    """Token ids of the held-out slice, in the order of `heldout_documents`."""
    return encode_documents(heldout_documents(), code_tokenizer())


def heldout_windows(length: int, count: int | None = None) -> Int[Tensor, "windows length"]:
    """Windows of the held-out slice, side by side and without overlap; `count` of them, evenly spread (default all).

    Raises ValueError when the slice has fewer windows than asked for.
    """
    tokens = heldout_tokens()
    fit = len(tokens) // length if length > 0 else 0
    count = fit if count is None else count
    if not 1 <= count <= fit:
        raise ValueError(f"the held-out slice holds {fit} windows of {length} tokens, asked for {count}; take 1..{fit}")
    chosen = torch.linspace(0, fit - 1, count).round().long()
    return tokens[:fit * length].view(fit, length)[chosen]


def corpus_path() -> Path:
    """Where the training tokens stand in the user cache, there or not."""
    return cache_dir() / "corpora" / f"python-{PYTHON_VERSION}-bpe{VOCAB_SIZE}.safetensors"


def load_corpus() -> Int[Tensor, "tokens"]:
    """The training tokens. ValueError when they are not built yet, or by another recipe or Python."""
    path = corpus_path()
    if not path.is_file():
        raise ValueError(f"{path} is not there; build it with `python recipes/build_code_corpus.py` "
                         f"under CPython {PYTHON_VERSION}")
    tokens = load_file(path)["tokens"]
    found = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    if found != CORPUS_SHA256:
        raise ValueError(f"{path} is another corpus: sha256 {found[:12]}... instead of {CORPUS_SHA256[:12]}...; "
                         f"build it again under CPython {PYTHON_VERSION}")
    return tokens.long()
