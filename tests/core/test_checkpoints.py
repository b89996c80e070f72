"""Checkpoints: what is read equals what was written, in every format, and the converted copy equals both."""
import json
import os
import struct
import subprocess
import sys
import time

import gguf
import numpy as np
import pytest
import torch

from frugal.core import converted, gguf_file
from frugal.core.checkpoints import load_lm, open_checkpoint
from frugal.core.fetch import cache_dir
from frugal.core.layout import part_shapes, split_weights

pytestmark = pytest.mark.usefixtures("own_cache")
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
STEP = {"F32": 0, "F16": 1e-3, "BF16": 8e-3, "Q8_0": 1e-2, "Q4_0": 0.2, "Q4_1": 0.2}     # rounding, of the largest weight


def decode(raw: bytes, kind: str) -> list[float]:
    """The block formats spelled out, one number at a time (ggml/src/ggml-common.h)."""
    if kind in ("F32", "F16"):
        return [x for x, in struct.iter_unpack("<f" if kind == "F32" else "<e", raw)]
    if kind == "BF16":
        return [struct.unpack("<f", b"\0\0" + raw[i:i + 2])[0] for i in range(0, len(raw), 2)]
    out, head = [], 4 if kind == "Q4_1" else 2
    size = head + (32 if kind == "Q8_0" else 16)
    for i in range(0, len(raw), size):
        scale, body = struct.unpack_from("<e", raw, i)[0], raw[i + head:i + size]
        if kind == "Q8_0":
            out += [scale * x for x in struct.unpack("<32b", body)]
            continue
        low = struct.unpack_from("<e", raw, i + 2)[0] if kind == "Q4_1" else -8 * scale
        out += [scale * (byte & 15) + low for byte in body] + [scale * (byte >> 4) + low for byte in body]
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_gguf_type_equals_a_number_by_number_decoder(kind, write_gguf, parts):
    path = write_gguf(kind)
    lm = load_lm(path)
    raw, tensors = path.read_bytes(), {t.name: t for t in gguf.GGUFReader(path).tensors}
    seen = 0
    for part, weight in split_weights(lm.config, lm.weights):
        tensor = tensors[gguf_file.name_in_gguf(part)]
        start = int(tensor.data_offset)
        values = np.array(decode(raw[start:start + int(tensor.n_bytes)], tensor.tensor_type.name), np.float32)
        values = values.reshape(weight.shape)
        if part.endswith((".q", ".k")):         # undo the side-by-side pairs, one row at a time
            half = lm.config.head_dim // 2
            rows = [head * 2 * half + 2 * i + side for head in range(weight.shape[0] // (2 * half))
                    for side in range(2) for i in range(half)]
            values = values[rows]
        torch.testing.assert_close(weight, torch.from_numpy(values), rtol=1e-6, atol=1e-7)
        assert (weight - parts[part]).abs().max() <= STEP[kind] * parts[part].abs().max()
        seen += 1
    assert seen == len(part_shapes(lm.config))


def test_gguf_and_folder_of_the_same_weights_are_the_same_model(write_gguf, write_folder):
    a, b, c = load_lm(write_gguf()), load_lm(write_folder()), load_lm(write_folder(shards=3))
    tokens = torch.arange(20)[None] + 3
    torch.testing.assert_close(a(tokens), b(tokens))
    torch.testing.assert_close(b(tokens), c(tokens), rtol=0, atol=0)
    assert a.config.rope_theta == b.config.rope_theta == 50_000.0 and a.config.eos_ids == b.config.eos_ids == (2,)
    assert a.tokenizer.encode("<|im_start|>the") == [1, *a.tokenizer.encode("the")]


def test_a_reader_that_forgets_the_row_order_gives_another_model(write_gguf, write_folder, monkeypatch):
    right = load_lm(write_folder())(torch.arange(20)[None])
    monkeypatch.setattr(gguf_file, "_halves", lambda weight, num_heads: weight)
    wrong = load_lm(write_gguf())(torch.arange(20)[None])
    assert (right - wrong).abs().max() > 1e-3


def test_an_untied_head_is_read(write_gguf, write_folder, parts):
    change = {"head": torch.randn(parts["embed"].shape)}
    a, b = load_lm(write_gguf(change=change)), load_lm(write_folder({"tie_word_embeddings": False}, change=change))
    for lm in (a, b):
        assert not lm.config.tie_embeddings and torch.equal(lm.weights["head"], change["head"])


@pytest.mark.parametrize("written", [
    {"rope_theta": ..., "rope_parameters": {"rope_theta": 50_000.0, "rope_type": "default"}},
    {"rope_scaling": None, "head_dim": 16}, {"model_type": "mistral", "sliding_window": None}])
def test_the_ways_transformers_writes_one_configuration(written, write_folder):
    plain = load_lm(write_folder()).config
    assert load_lm(write_folder(written)).config == plain


def test_llama3_frequency_scaling_is_read(write_folder):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
    lm = load_lm(write_folder({"rope_scaling": {"rope_type": "llama3", **scaling}}))
    assert lm.config.rope_scaling == scaling and lm.rope.scaling == scaling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_converted_copy_is_the_model(dtype, write_gguf):
    path = write_gguf("Q8_0")
    first, again = load_lm(path, dtype=dtype), load_lm(path, dtype=dtype)
    source = open_checkpoint(path)
    assert first.config == again.config == source.config and again.dtype == dtype
    for part, weight in split_weights(again.config, again.weights):
        assert torch.equal(weight, source.part(part).to(dtype))
        assert torch.equal(weight, dict(split_weights(first.config, first.weights))[part])
    assert len(list((cache_dir() / "converted").glob("*.safetensors"))) == 1
    assert again.tokenizer.encode("the 12") == source.tokenizer().encode("the 12")


def test_a_changed_source_is_converted_again(write_gguf, parts):
    path = write_gguf()
    old = load_lm(path)
    write_gguf(change={"norm": parts["norm"] + 1})
    os.utime(path, ns=(1, 1))
    assert torch.equal(load_lm(path).weights["norm"], parts["norm"] + 1) and torch.equal(old.weights["norm"], parts["norm"])


@pytest.mark.parametrize("damage", ["cut", "flip", "header", "empty", "old"])
def test_a_damaged_copy_is_rebuilt(damage, write_gguf, parts):
    path = write_gguf()
    load_lm(path)
    copy, = (cache_dir() / "converted").glob("*.safetensors")
    good = copy.read_bytes()
    room = int.from_bytes(good[:8], "little")
    bad = {"cut": good[:-100], "empty": b"", "header": good[:9] + b"\xff" * 40 + good[49:],
           "flip": good[:-5000] + bytes([good[-5000] ^ 16]) + good[-4999:],
           "old": good.replace(b'"version": "1"', b'"version": "0"')}[damage]
    assert bad != good and room < len(good) - 5000
    copy.unlink()
    copy.write_bytes(bad)
    assert converted.read(copy) is None
    assert torch.equal(load_lm(path).weights["embed"], parts["embed"])
    assert copy.read_bytes() == good


def test_every_single_flipped_bit_changes_the_checksum():
    data = torch.arange(37, dtype=torch.uint8)
    sums = {converted.checksum(data)}
    for i in range(37):
        for bit in range(8):
            flipped = data.clone()
            flipped[i] ^= 1 << bit
            sums.add(converted.checksum(flipped))
            assert converted.checksum(flipped) != converted.checksum(data)


def test_changing_a_weight_in_place_stays_in_this_process(write_gguf, parts):
    path = write_gguf()
    load_lm(path).weights["norm"].zero_()
    assert torch.equal(load_lm(path).weights["norm"], parts["norm"])


def test_killed_while_converting_the_next_call_recovers(write_gguf, parts):
    path = write_gguf()
    script = ("import sys, time; from frugal.core import checkpoints, layout\n"
              "def slow(source, dtype):\n"
              "    for i, pair in enumerate(layout.fused_weights(source, dtype)):\n"
              "        if i == 3: print('half', flush=True); time.sleep(60)\n"
              "        yield pair\n"
              "checkpoints.fused_weights = slow; checkpoints.load_lm(sys.argv[1])")
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "half\n"
    child.kill()
    child.wait()
    folder = cache_dir() / "converted"
    assert list(folder.glob("*.part")) and not list(folder.glob("*.safetensors"))
    assert torch.equal(load_lm(path).weights["embed"], parts["embed"])
    assert not list(folder.glob("*.part")) and len(list(folder.glob("*.safetensors"))) == 1


@pytest.mark.model
def test_smollm2_loads_fast_and_small_once_converted(smollm2):
    """Under 5 s; a notebook kernel may take 1.8 GiB, and 1.4 leaves no room for the weights twice. A process of its own."""
    script = ("import json, time, torch; from frugal.core.checkpoints import load_lm; from frugal.core.measure import peak_rss_bytes\n"
              "start = time.process_time(); lm = load_lm(); spent = time.process_time() - start\n"
              "lm(torch.ones(1, 64, dtype=torch.int64))\n"
              "print(json.dumps([spent, peak_rss_bytes()]))")
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    spent_s, peak_bytes = json.loads(out)
    assert spent_s < 5 and peak_bytes < 1.4 * 2**30, (spent_s, peak_bytes, time.perf_counter() - start)


@pytest.mark.model
def test_smollm2_has_the_sizes_of_its_model_card(smollm2):
    c = smollm2.config
    assert (c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.vocab_size) == (30, 576, 9, 3, 49152)
    assert smollm2.num_parameters == 134_515_008 and c.tie_embeddings and c.max_positions == 8192


def test_two_processes_converting_at_once_share_one_copy(write_gguf):
    script = "import sys; from frugal.core.checkpoints import load_lm; print(load_lm(sys.argv[1]).weights['embed'].sum())"
    path = str(write_gguf())
    children = [subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True)
                for _ in range(2)]
    sums = {child.communicate(timeout=120)[0] for child in children}
    assert len(sums) == 1 and sums != {""} and all(child.returncode == 0 for child in children)
    assert len(list((cache_dir() / "converted").iterdir())) == 2            # the copy and its lock
