"""Reading a folder with config.json, safetensors and tokenizer.json, as transformers saves them."""
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frugal.core.layout import CheckpointError, check_parts, checked_config, part_shapes
from frugal.core.lm import LMConfig
from frugal.core.tokenizer import Tokenizer

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NAMES = {"embed": "model.embed_tokens", "head": "lm_head", "norm": "model.norm"}
_LAYER_NAMES = {"attn_norm": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
                "v": "self_attn.v_proj", "o": "self_attn.o_proj", "mlp_norm": "post_attention_layernorm",
                "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}


def name_in_folder(part: str) -> str:
    """'layers.3.q' -> 'model.layers.3.self_attn.q_proj.weight'."""
    if part in _NAMES:
        return f"{_NAMES[part]}.weight"
    _, layer, last = part.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[last]}.weight"


class SafetensorsFolder:
    """A Llama-style checkpoint folder, checked when opened. CheckpointError says what is wrong with it."""

    def __init__(self, folder: Path):
        self.label, self.folder = str(folder), folder
        self._json = _read_json(folder / "config.json")
        self._files = _files_of_tensors(folder)
        self.config = self._config_of_file()
        check_parts(self, name_in_folder, len(self._files))
        self._check_tensors()

    def part_names(self) -> set[str]:
        return {part for part in part_shapes(self.config) if name_in_folder(part) in self._files}

    def part(self, name: str) -> Tensor:
        """One weight, in the precision it is stored in."""
        key = name_in_folder(name)
        with safe_open(self._files[key], framework="pt") as file:
            return file.get_tensor(key)

    def tokenizer(self) -> Tokenizer:
        try:
            return Tokenizer.from_folder(self.folder, self.config.bos_id, _first(self.config.eos_ids))
        except Exception as error:      # the tokenizers library raises plain Exception on a damaged file
            raise CheckpointError(f"{self.label}: the tokenizer cannot be read: {error}") from error

    def _config_of_file(self) -> LMConfig:
        config, label = self._json, self.label
        kind = config.get("model_type")
        # Mistral without a sliding window is the same decoder; its default is a window, so null must be written
        if kind != "llama" and not (kind == "mistral" and config.get("sliding_window", 4096) is None):
            raise CheckpointError(f"{label}: config.json says model_type {kind!r}; this decoder reads 'llama' "
                                  "(Llama, SmolLM2, TinyLlama and their kin). Use such a folder.")
        for key, only in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}.items():
            if config.get(key, only) != only:
                raise CheckpointError(f"{label}: config.json says {key} = {config[key]!r}; this decoder has {only!r}. "
                                      "Use a plain Llama folder.")
        if config.get("quantization_config"):
            raise CheckpointError(f"{label}: the weights are quantized ({config['quantization_config']!r:.80}). "
                                  "Use a folder in float32, float16 or bfloat16, or a GGUF file.")
        hidden_size, num_heads = self._whole("hidden_size"), self._whole("num_attention_heads")
        theta, scaling = self._rope()
        tied = config.get("tie_word_embeddings", False) or "lm_head.weight" not in self._files
        return checked_config(
            self.label, vocab_size=self._whole("vocab_size"), hidden_size=hidden_size, num_layers=self._whole("num_hidden_layers"),
            num_heads=num_heads, num_kv_heads=self._whole("num_key_value_heads", num_heads),
            head_dim=self._whole("head_dim", hidden_size // num_heads),
            intermediate_size=self._whole("intermediate_size"), rope_theta=theta,
            rope_scaling=scaling, norm_eps=float(config.get("rms_norm_eps", 1e-6)), max_positions=self._whole("max_position_embeddings", 2048),
            tie_embeddings=bool(tied), bos_id=_first(_ids(config.get("bos_token_id"))),
            eos_ids=_ids(config.get("eos_token_id")))

    def _whole(self, key: str, default: int | None = None) -> int:
        value = self._json.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{self.label}: config.json says {key} = {value!r}, a whole number above 0 was "
                                  "expected. Get a complete folder.")
        return value

    def _rope(self) -> tuple[float, dict | None]:
        """theta and scaling. transformers 5 writes rope_parameters; older ones rope_theta with rope_scaling beside it."""
        rope = self._json.get("rope_parameters") or self._json.get("rope_scaling") or {}
        theta = float(rope.get("rope_theta", self._json.get("rope_theta", 10000.0)))
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return theta, None
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        if kind != "llama3" or any(key not in rope for key in keys):
            raise CheckpointError(f"{self.label}: config.json asks for RoPE scaling {rope!r}; this decoder has plain "
                                  f"RoPE and 'llama3' with {keys}. Use such a model, SmolLM2 for one.")
        return theta, {key: rope[key] for key in keys}

    def _check_tensors(self) -> None:
        for part, shape in part_shapes(self.config).items():
            key = name_in_folder(part)
            with _open(self._files[key]) as file:
                found, dtype = tuple(file.get_slice(key).get_shape()), file.get_slice(key).get_dtype()
            if found != shape:
                raise CheckpointError(f"{self.label}: {key} has shape {found}, config.json asks for {shape}. "
                                      "Get config.json and weights that belong together.")
            if dtype not in ("F32", "F16", "BF16"):
                raise CheckpointError(f"{self.label}: {key} is stored as {dtype}; F32, F16 and BF16 can be read. "
                                      "Save the model in one of these.")


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else () if value is None else (value,)


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing. A model folder holds config.json, safetensors and "
                              "tokenizer.json; pass such a folder or a .gguf file.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}. Get it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: a JSON object was expected. Get it again.")
    return content


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing. Get the complete folder.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} ({path.stat().st_size} bytes) is truncated or damaged: {error}. "
                              "Get it again.") from error


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor; model.safetensors, or the files of model.safetensors.index.json."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        paths = sorted({folder / Path(name).name for name in _read_json(index).get("weight_map", {}).values()})
    else:
        paths = [folder / "model.safetensors"]
    files = {}
    for path in paths:
        with _open(path) as file:
            files.update(dict.fromkeys(file.keys(), path))
    return files
