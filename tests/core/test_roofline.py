import pytest
from hypothesis import given, strategies as st

from frugal.core.devices import DEVICES, device, this_cpu
from frugal.core.roofline import SHAPES, Cost, batch_that_fits, shape, time


@pytest.mark.parametrize("name", DEVICES)
def test_every_number_of_a_device_has_a_source(name):
    found = DEVICES[name]
    numbers = {*found.flops, "bandwidth", "memory_bytes", *(f"sparse {dtype}" for dtype in found.sparse_flops)}
    if found.link_bandwidth is not None:
        numbers.add("link_bandwidth")
    assert set(found.sources) == numbers and all(len(source) > 10 for source in found.sources.values())
    assert all("dense" in found.sources[dtype] or "measured" in found.sources[dtype] for dtype in found.flops)
    for dtype, sparse in found.sparse_flops.items():
        assert sparse == pytest.approx(2 * found.flops[dtype], rel=0.01)


@pytest.mark.parametrize("name, published", [
    ("SmolLM2-135M", 134_515_008), ("Llama-2-7B", 6_738_415_616), ("Llama-2-13B", 13_015_864_320),
    ("Llama-2-70B", 68_976_648_192), ("Llama-3.1-8B", 8_030_261_248), ("Llama-3.1-70B", 70_553_706_496),
    ("Mistral-7B", 7_241_732_096), ("Qwen3-8B", 8_190_735_360), ("MPT-7B", 6_649_286_656)])
def test_parameter_counts_are_the_published_ones(name, published):
    assert shape(name).num_params == published and len(SHAPES) == 9


def test_cache_bytes_per_token():
    assert shape("Llama-3.1-8B").kv_bytes_per_token(16) == 131_072          # 128 KiB
    assert shape("SmolLM2-135M").kv_bytes_per_token(32) == 46_080
    assert shape("Llama-3.1-8B").kv_bytes_per_token() * 122 * 1024 / 1e9 == pytest.approx(16.4, abs=0.05)
    assert shape("SmolLM2-135M").weight_bytes(32) == pytest.approx(538e6, rel=1e-3)


def test_shadowkv_batches_follow_from_bytes():
    """arXiv 2410.21465: Llama-3.1-8B at 122K on an A100 of 80 GB runs batch 4 in full and 24 with ShadowKV."""
    model, tokens = shape("Llama-3.1-8B"), 122 * 1024
    full = tokens * model.kv_bytes_per_token()
    assert batch_that_fits(model, full, "A100-80GB") == 4
    low_rank = tokens * 160 * 2 * model.num_layers                              # U, fp16, one basis per layer
    landmarks = tokens // 8 * model.num_kv_heads * model.head_dim * 2 * model.num_layers
    assert low_rank == pytest.approx(1.28e9, rel=0.01) and landmarks == pytest.approx(1.02e9, rel=0.01)
    fits = batch_that_fits(model, low_rank + landmarks + 0.3e9, "A100-80GB")
    assert 24 <= fits < 48                                                        # the next power of two does not fit


def test_halving_the_cache_cannot_give_more_than_twice():
    model = shape("MPT-7B")
    ratios = [time(model.decode_cost(context, batch=8), "A100-80GB").lower_s
              / time(model.decode_cost(context, batch=8, kept=0.5), "A100-80GB").lower_s
              for context in (512, 4096, 32768, 10**6)]
    assert ratios == sorted(ratios) and 1 < ratios[0] and 1.9 < ratios[-1] < 2


@given(st.floats(0, 1e15), st.floats(0, 1e12), st.floats(0, 1e12), st.sampled_from(sorted(DEVICES)))
def test_the_bounds_hold(flops, bytes, link, name):
    link = link if DEVICES[name].link_bandwidth else 0
    span = time(Cost(flops, bytes, link), name, "fp32")
    assert span.lower_s <= span.upper_s <= 3 * span.lower_s + 1e-12
    assert time(Cost(flops, bytes), DEVICES[name], "fp32").upper_s == pytest.approx(
        time(Cost(flops), name, "fp32").lower_s + time(Cost(0, bytes), name, "fp32").lower_s)


def test_costs_add_and_scale():
    assert Cost(1, 2, 3) + 2 * Cost(10, 20, 30) == Cost(21, 42, 63)


def test_decode_is_bound_by_traffic_and_prefill_by_compute():
    model, gpu = shape("Llama-2-7B"), device("A100-80GB")
    assert gpu.balance["fp16"] == pytest.approx(153, abs=1)
    decode, prefill = model.decode_cost(2048), model.prefill_cost(2048)
    assert decode.flops / decode.bytes < gpu.balance["fp16"] < prefill.flops / prefill.bytes
    assert time(decode, gpu).lower_s == pytest.approx(decode.bytes / 2039e9)


def test_decoding_one_by_one_computes_what_prefill_does():
    """Summed over positions the attention and body FLOPs agree; decode adds a head for every token but the last."""
    model, tokens = shape("SmolLM2-135M"), 40
    steps = sum(model.decode_cost(context).flops for context in range(1, tokens + 1))
    heads = (tokens - 1) * 2 * model.vocab_size * model.hidden_size
    assert steps - heads == model.prefill_cost(tokens).flops


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="unknown device 'A1000'; there are: A100-40GB"):
        device("A1000")
    with pytest.raises(ValueError, match="unknown model shape 'GPT-5'; there are: SmolLM2"):
        shape("GPT-5")
    with pytest.raises(ValueError, match="P40 has no 'fp16' number; known: fp32, int8"):
        time(Cost(1), "P40")
    with pytest.raises(ValueError, match="two-core-cpu has no link"):
        time(Cost(link_bytes=5), "two-core-cpu", "fp32")


def test_this_cpu_is_measured():
    found = this_cpu(threads=1)
    assert 1e8 < found.bandwidth < 2e12 and 1e8 < found.flops["fp32"] < 1e13
    assert all("measured now" in source for source in found.sources.values())
