"""Text to token ids and back, on the `tokenizers` library.

Built from the vocabulary inside a GGUF file or from a tokenizer.json, so nothing but the model file is needed.
"""
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import decoders, models, pre_tokenizers, processors

_CHATML = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
           "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
_CONTROL, _USER_DEFINED = 3, 4          # tokenizer.ggml.token_type, as llama.cpp numbers them


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# tokenizer.ggml.pre names how text is cut before the merges run
_PRE_TOKENIZERS = {
    "gpt-2": _byte_level,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()]),
}


class Tokenizer:
    """A byte-level BPE tokenizer with its special tokens and chat template.

    data: the tokenizer as the `tokenizers` library writes it (tokenizer.json).
    settings: bos_id, eos_id, chat_template; each may be None.
    """

    def __init__(self, data: str, settings: Mapping[str, Any]):
        self._data = data
        self._fast = tokenizers.Tokenizer.from_str(data)
        self.settings = dict(settings)
        self.bos_id: int | None = settings.get("bos_id")
        self.eos_id: int | None = settings.get("eos_id")

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """From the tokenizer.* entries of a GGUF file. ValueError for kinds other than GPT-2 and SmolLM BPE."""
        kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
        if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
            raise ValueError(f"this GGUF file has a tokenizer of kind {kind!r} with pre-tokenizer {pre!r}; kind 'gpt2' "
                             f"with {sorted(_PRE_TOKENIZERS)} can be read. Remedy: use a folder with tokenizer.json")
        tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        types: Sequence[int] = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
        if len(set(tokens)) < len(tokens):
            raise ValueError("a token stands twice in the vocabulary: the file is damaged, get it again")
        merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
        fast = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        fast.pre_tokenizer = _PRE_TOKENIZERS[pre]()
        fast.decoder = decoders.ByteLevel()
        for token, type_ in zip(tokens, types, strict=True):
            if type_ in (_CONTROL, _USER_DEFINED):
                fast.add_tokens([tokenizers.AddedToken(token, special=type_ == _CONTROL, normalized=False)])
        bos_id = metadata.get("tokenizer.ggml.bos_token_id")
        if metadata.get("tokenizer.ggml.add_bos_token", False) and bos_id is not None:
            fast.post_processor = processors.TemplateProcessing(
                single=f"{tokens[bos_id]}:0 $A:0", special_tokens=[(tokens[bos_id], bos_id)])
        return cls(fast.to_str(), {"bos_id": bos_id, "eos_id": metadata.get("tokenizer.ggml.eos_token_id"),
                                   "chat_template": metadata.get("tokenizer.chat_template")})

    @classmethod
    def from_folder(cls, folder: Path, bos_id: int | None = None, eos_id: int | None = None) -> "Tokenizer":
        """From tokenizer.json, with the chat template of tokenizer_config.json or chat_template.jinja if there."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{folder} has no tokenizer.json; save the tokenizer into the folder as well")
        template_path, config_path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        template = None
        if template_path.is_file():
            template = template_path.read_text(encoding="utf-8")
        elif config_path.is_file():
            template = json.loads(config_path.read_text(encoding="utf-8")).get("chat_template")
        template = template if isinstance(template, str) else None
        return cls(path.read_text(encoding="utf-8"), {"bos_id": bos_id, "eos_id": eos_id, "chat_template": template})

    def to_json(self) -> str:
        return self._data

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """A second copy that reads special tokens in the text as plain characters."""
        fast = tokenizers.Tokenizer.from_str(self._data)
        fast.encode_special_tokens = True
        return fast

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`.

        special: read '<|im_start|>' and the like as the one token they name, and add the tokens that the checkpoint's
        tokenizer puts around a text (SmolLM2 puts none). False: every character is plain text.
        """
        fast = self._fast if special else self._literal
        return fast.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are no full character come out as U+FFFD."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @cached_property
    def vocab_size(self) -> int:                 # counting takes the library 8 ms, and `token_str` asks each time
        return self._fast.get_vocab_size()

    def token_str(self, id: int) -> str:
        """The text of one token as a reader sees it: ' the', not 'Ġthe'."""
        if not 0 <= int(id) < self.vocab_size:
            raise ValueError(f"token id {int(id)} is not in 0..{self.vocab_size - 1}")
        return self.decode([id])

    def chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages ({'role', 'content'}) as one text in the checkpoint's chat template; ChatML where it has none."""
        template = self.settings.get("chat_template") or _CHATML
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        bos = "" if self.bos_id is None else self._fast.id_to_token(self.bos_id)
        eos = "" if self.eos_id is None else self._fast.id_to_token(self.eos_id)
        text = environment.from_string(template).render(messages=list(messages), bos_token=bos, eos_token=eos,
                                                        add_generation_prompt=add_generation_prompt)
        adds_bos = bool(bos) and self.encode("")[:1] == [self.bos_id]
        return text.removeprefix(bos) if adds_bos else text         # encode() puts it back
