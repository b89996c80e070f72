"""Small model files to read: real formats, random weights."""
import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers

from frugal.core.gguf_file import name_in_gguf
from frugal.core.layout import part_shapes
from frugal.core.lm import LMConfig
from frugal.core.safetensors_folder import name_in_folder

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET, "Ġt", "he"]
MERGES = ["Ġ t", "h e"]
CONFIG = LMConfig(vocab_size=len(TOKENS), hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
                  intermediate_size=96, rope_theta=50_000.0, max_positions=512, bos_id=1, eos_ids=(2,))


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's row order of q and k, row by row: pair i of a head stands in rows 2i and 2i + 1."""
    out, half = np.empty_like(weight), weight.shape[0] // num_heads // 2
    for head in range(num_heads):
        for i in range(half):
            for side in range(2):
                out[head * 2 * half + 2 * i + side] = weight[head * 2 * half + side * half + i]
    return out


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch, request):
    """A test's own cache folder, except for tests that read the real model."""
    if "smollm2" not in request.fixturenames:
        monkeypatch.setenv("FRUGAL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def parts():
    """Random weights of CONFIG, unfused, by part name."""
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) * (1 if len(shape) == 1 else shape[-1] ** -0.5)
            for name, shape in part_shapes(CONFIG).items()}


@pytest.fixture
def write_gguf(tmp_path, parts):
    """write_gguf(kind, drop=(), change={}, metadata={}, architecture='llama') -> path of a GGUF of CONFIG."""
    def write(kind="F32", drop=(), change=None, metadata=None, architecture="llama", name="tiny.gguf"):
        path, c, kind = tmp_path / name, CONFIG, gguf.GGMLQuantizationType[kind]
        writer = gguf.GGUFWriter(path, architecture)
        values = {"context_length": c.max_positions, "embedding_length": c.hidden_size, "block_count": c.num_layers,
                  "feed_forward_length": c.intermediate_size, "attention.head_count": c.num_heads,
                  "attention.head_count_kv": c.num_kv_heads, "vocab_size": c.vocab_size} | (metadata or {})
        for key, value in values.items():
            if value is not None:
                add = writer.add_string if isinstance(value, str) else writer.add_uint32
                add(f"{architecture}.{key}", value)
        writer.add_float32(f"{architecture}.rope.freq_base", c.rope_theta)
        writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", c.norm_eps)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3 if token.startswith("<|") else 1 for token in TOKENS])
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        for part, weight in (parts | (change or {})).items():
            if part in drop:
                continue
            array = weight.numpy() if isinstance(weight, torch.Tensor) else weight
            if part.endswith((".q", ".k")):
                array = interleaved(array, c.num_heads if part.endswith(".q") else c.num_kv_heads)
            if array.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
                writer.add_tensor(name_in_gguf(part), array.astype(np.float32))
            else:
                writer.add_tensor(name_in_gguf(part), gguf.quants.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path
    return write


@pytest.fixture
def write_folder(tmp_path, parts):
    """write_folder(config={}, drop=(), change={}, shards=1) -> a safetensors folder of CONFIG, as transformers saves it."""
    def write(config=None, drop=(), change=None, shards=1, dtype=torch.float32):
        folder, c = tmp_path / "model", CONFIG
        folder.mkdir(exist_ok=True)
        values = dict(model_type="llama", vocab_size=c.vocab_size, hidden_size=c.hidden_size, hidden_act="silu",
                      num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads, rms_norm_eps=c.norm_eps,
                      num_key_value_heads=c.num_kv_heads, intermediate_size=c.intermediate_size, bos_token_id=1,
                      rope_theta=c.rope_theta, max_position_embeddings=c.max_positions, tie_word_embeddings=True,
                      eos_token_id=[2]) | (config or {})
        (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
        tensors = {name_in_folder(part): weight.to(dtype).contiguous()
                   for part, weight in (parts | (change or {})).items() if part not in drop}
        names = sorted(tensors)
        if shards == 1:
            save_file(tensors, folder / "model.safetensors")
        else:
            files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
            for file in set(files.values()):
                save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        Fast(models.BPE({token: i for i, token in enumerate(TOKENS)},
                        [tuple(m.split(" ")) for m in MERGES])).save(str(folder / "tokenizer.json"))
        return folder
    return write
