"""Reading a Llama-style GGUF file: configuration, weights as float32, tokenizer.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The blocks are decoded by the `gguf` package.
"""
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor

from frugal.core.layout import CheckpointError, check_parts, checked_config, part_shapes
from frugal.core.lm import LMConfig
from frugal.core.tokenizer import Tokenizer

SUPPORTED = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1)
_MAX_ENTRIES = 1 << 21      # vocabularies have some 10^5 tokens and merges
_ROWS = 4096        # rows decoded at once: the decoder's scratch space is several times its output
_NAMES = {"embed": "token_embd", "head": "output", "norm": "output_norm"}
_LAYER_NAMES = {"attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
                "mlp_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}


def name_in_gguf(part: str) -> str:
    """'layers.3.q' -> 'blk.3.attn_q.weight'."""
    if part in _NAMES:
        return f"{_NAMES[part]}.weight"
    _, layer, last = part.split(".")
    return f"blk.{layer}.{_LAYER_NAMES[last]}.weight"


class GGUFFile:
    """A GGUF file of architecture 'llama', checked when opened. CheckpointError says what is wrong with it."""

    def __init__(self, path: Path):
        self.label = str(path)
        self._reader = _open(path)
        try:
            self.metadata = {key: field.contents() for key, field in self._reader.fields.items()}
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is damaged: a text in it is no UTF-8 ({error}). Get it again.") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.config = self._config_of_file()
        check_parts(self, name_in_gguf, len(self._tensors))
        self._check_tensors(path.stat().st_size)

    def part_names(self) -> set[str]:
        return {part for part in part_shapes(self.config) if name_in_gguf(part) in self._tensors}

    def tokenizer(self) -> Tokenizer:
        try:
            return Tokenizer.from_gguf(self.metadata)
        except KeyError as error:
            raise CheckpointError(f"{self.label} holds no tokenizer: {error} is missing. Get a complete file.") from error
        except Exception as error:      # the tokenizers library raises plain Exception on merges of unknown tokens
            raise CheckpointError(f"{self.label}: the tokenizer cannot be read: {error}") from error

    def part(self, name: str) -> Tensor:
        """One weight in float32. The rows of q and k come back in the order of rotate-half RoPE."""
        tensor = self._tensors[name_in_gguf(name)]
        shape = part_shapes(self.config)[name]
        out = torch.empty(shape)
        for start in range(0, shape[0], _ROWS):
            block = tensor.data[start:start + _ROWS]
            out[start:start + _ROWS] = torch.from_numpy(gguf.quants.dequantize(block, tensor.tensor_type).copy())
        last = name.rpartition(".")[2]
        if last in ("q", "k"):
            out = _halves(out, self.config.num_heads if last == "q" else self.config.num_kv_heads)
        return out

    def _config_of_file(self) -> LMConfig:
        architecture = self.metadata.get("general.architecture")
        if architecture != "llama":
            raise CheckpointError(f"{self.label} has architecture {architecture!r}; this decoder reads 'llama' "
                                  "(Llama, SmolLM2, TinyLlama and their kin). Use such a file.")
        number = self._number
        num_heads, hidden_size = int(number("attention.head_count")), int(number("embedding_length"))
        head_dim = int(number("attention.key_length", hidden_size // num_heads if num_heads else 0))
        config = checked_config(
            self.label, vocab_size=len(self.metadata.get("tokenizer.ggml.tokens", ())) or int(number("vocab_size")),
            hidden_size=hidden_size, num_layers=int(number("block_count")), num_heads=num_heads,
            num_kv_heads=int(number("attention.head_count_kv", num_heads)), head_dim=head_dim,
            intermediate_size=int(number("feed_forward_length")), rope_theta=float(number("rope.freq_base", 10000.0)),
            norm_eps=_short(number("attention.layer_norm_rms_epsilon")), max_positions=int(number("context_length")),
            tie_embeddings="output.weight" not in self._tensors, bos_id=self.metadata.get("tokenizer.ggml.bos_token_id"),
            eos_ids=tuple(i for i in (self.metadata.get("tokenizer.ggml.eos_token_id"),) if i is not None))
        self._refuse("expert_count", 0, "experts")
        self._refuse("rope.dimension_count", head_dim, "RoPE on a part of the head")
        self._refuse("rope.scaling.type", "none", "scaled RoPE")
        self._refuse("attention.value_length", head_dim, "values of another width than keys")
        unknown = sorted(name for name in self._tensors if name == "rope_freqs.weight" or name.endswith(".bias"))
        if unknown:
            raise CheckpointError(f"{self.label} holds {unknown[0]!r}, which this decoder has no place for. "
                                  "Use a plain Llama file without biases and scaled RoPE.")
        return config

    def _number(self, key: str, default: int | float | None = None) -> int | float:
        value = self.metadata.get(f"llama.{key}", default)
        if not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"{self.label}: llama.{key} is {value!r}, a number above 0 was expected. "
                                  "The file is damaged or incomplete; get it again.")
        return value

    def _refuse(self, key: str, only: Any, what: str) -> None:
        value = self.metadata.get(f"llama.{key}", only)
        if value != only:
            raise CheckpointError(f"{self.label}: llama.{key} is {value!r}; this decoder has no {what}. "
                                  "Use a plain Llama file.")

    def _check_tensors(self, file_bytes: int) -> None:
        for part, shape in part_shapes(self.config).items():
            tensor = self._tensors[name_in_gguf(part)]
            found = tuple(int(n) for n in reversed(tensor.shape))
            if found != shape:
                raise CheckpointError(f"{self.label}: {tensor.name} has shape {found}, the configuration asks for "
                                      f"{shape}. The file is damaged; get it again.")
            if tensor.tensor_type not in SUPPORTED:
                names = ", ".join(kind.name for kind in SUPPORTED)
                raise CheckpointError(f"{self.label}: {tensor.name} is stored as {tensor.tensor_type.name}; {names} "
                                      "can be read. Convert the file with llama.cpp's llama-quantize.")
            if tensor.data_offset + tensor.n_bytes > file_bytes:
                raise CheckpointError(f"{self.label} is truncated: {tensor.name} ends at byte "
                                      f"{tensor.data_offset + tensor.n_bytes}, the file at {file_bytes}. Get it again.")


class _Reader(gguf.GGUFReader):
    """The library's reader, stopped at the end of the file: it would walk on through empty slices for ages."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, *more: Any, **options: Any) -> np.ndarray:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"byte {end} is asked for and the file ends at {len(self.data)}")
        return super()._get(int(offset), dtype, count, *more, **options)

    def _get_field_parts(self, offset: Any, kind: Any) -> tuple:
        if kind == gguf.GGUFValueType.ARRAY and (size := int(self._get(offset + 4, np.uint64)[0])) > _MAX_ENTRIES:
            raise ValueError(f"a list claims to have {size} entries")
        return super()._get_field_parts(offset, kind)


def _open(path: Path) -> gguf.GGUFReader:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is no GGUF file: it starts with {magic!r}, not with b'GGUF'. "
                              "Pass a .gguf file or a folder with config.json and safetensors.")
    try:
        return _Reader(path)
    except (ValueError, LookupError, ArithmeticError, TypeError, MemoryError, RecursionError) as error:
        raise CheckpointError(f"{path} ({path.stat().st_size} bytes) is truncated or damaged, the GGUF reader "
                              f"stopped with: {error}. Get it again.") from error


def _short(number: float) -> float:
    """A float32 as the decimal number it was meant to be: 9.999999747378752e-06 -> 1e-05."""
    return float(f"{number:.7g}")


def _halves(weight: Tensor, num_heads: int) -> Tensor:
    """Undo llama.cpp's row order: RoPE pairs stand side by side there, half a head apart here."""
    rows, columns = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
