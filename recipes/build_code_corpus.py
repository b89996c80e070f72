"""Build the corpus and the tokenizer of the small language models. Run with CPython 3.11.7:

    python recipes/build_code_corpus.py

Reads the standard library of the interpreter that runs it (tests, generated tables and installed packages left out)
and the language reference in `frugal.data.text`. Writes the training tokens to the user cache, the tokenizer and the
held-out slice into lib/frugal/data/assets, and prints the SHA-256 values that data/code_text.py checks. About 20 s.
"""
import gzip
import hashlib
import json
import platform
import sys
import sysconfig
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from frugal.core.tokenizer import Tokenizer
from frugal.data import code_text
from frugal.data.text import documentation_pages

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
HELD_OUT_MODULES = ("bisect.py", "fnmatch.py", "getopt.py", "graphlib.py", "queue.py", "sched.py", "shlex.py", "textwrap.py")
HELD_OUT_PAGES = ("comparisons", "execmodel", "import")


def library_documents() -> list[code_text.Document]:
    """The modules of the standard library, by path. Build-time files, which name the machine, are left out."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if LEFT_OUT & set(parts) or path.name.startswith("_sysconfigdata") or parts[0].startswith("config-"):
            continue
        try:
            found.append(code_text.Document("/".join(parts), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue                                           # one file of another encoding
    return found


def reference_documents() -> tuple[list[code_text.Document], list[code_text.Document]]:
    """(training, held-out) pages; paragraphs that a held-out page shares are taken out of the training pages."""
    pages = documentation_pages()
    held = [code_text.Document(p.name, p.text) for p in pages if p.name in HELD_OUT_PAGES]
    known = {part.strip() for page in held for part in page.text.split("\n\n") if len(part.strip()) > 40}
    train = [code_text.Document(p.name, "\n\n".join(part for part in p.text.split("\n\n") if part.strip() not in known))
             for p in pages if p.name not in HELD_OUT_PAGES]
    return train, held


def train_tokenizer(documents: list[code_text.Document]) -> str:
    """A byte-level BPE of VOCAB_SIZE entries as JSON."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                  pre_tokenizers.ByteLevel(add_prefix_space=False)])
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=code_text.VOCAB_SIZE, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    fast.train_from_iterator((d.text for d in documents), trainer)
    return fast.to_str()


def write_asset(name: str, content: str) -> str:
    """Compress into the package's assets; returns the SHA-256 of the uncompressed text."""
    data = content.encode()
    (code_text.ASSETS / name).write_bytes(gzip.compress(data, compresslevel=9, mtime=0))
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    if platform.python_version() != code_text.PYTHON_VERSION or platform.python_implementation() != "CPython":
        sys.exit(f"run this with CPython {code_text.PYTHON_VERSION}, not {platform.python_version()}: the corpus is its library")
    library = library_documents()
    train_pages, held_pages = reference_documents()
    held = [d for d in library if d.name in HELD_OUT_MODULES] + held_pages
    missing = {*HELD_OUT_MODULES, *HELD_OUT_PAGES} - {d.name for d in held}
    if missing:
        sys.exit(f"this Python lacks {sorted(missing)}")
    train = [d for d in library if d.name not in HELD_OUT_MODULES] + train_pages
    data = train_tokenizer(train)
    tokenizer = Tokenizer(data, {"bos_id": code_text.END_OF_TEXT, "eos_id": code_text.END_OF_TEXT})
    tokens = code_text.encode_documents(train, tokenizer).to(torch.int16)
    path = code_text.corpus_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"tokens": tokens}, path, metadata={"python": platform.python_version(), "documents": str(len(train))})
    heldout = json.dumps({d.name: d.text for d in held}, ensure_ascii=False, indent=0)
    print(f"TOKENIZER_SHA256 = {write_asset('code_tokenizer.json.gz', data)!r}")
    print(f"HELDOUT_SHA256 = {write_asset('code_heldout.json.gz', heldout)!r}")
    print(f"CORPUS_SHA256 = {hashlib.sha256(tokens.numpy().tobytes()).hexdigest()!r}")
    size = sum(len(d.text.encode()) for d in train)
    print(f"{len(train)} documents, {size:,} bytes, {len(tokens):,} training tokens ({size / len(tokens):.2f} bytes a token); "
          f"{len(held)} held out, {sum(len(d.text.encode()) for d in held):,} bytes, "
          f"{len(code_text.encode_documents(held, tokenizer)):,} tokens")


if __name__ == "__main__":
    main()
