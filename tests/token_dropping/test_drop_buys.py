"""What the drop buys: the measurement on a small random decoder, and the projection against arithmetic by hand."""
import pytest
import torch

from frugal.core.lm import random_lm
from frugal.core.recording import load_recorded
from frugal.core.roofline import shape
from frugal.token_dropping import drop_buys
from frugal.token_dropping.drop_buys import COUNTS, measure, measured_speedup, projected_s, projected_speedup


def test_the_measurement_counts_real_caches():
    lm = random_lm()
    rows = measure(lm, counts=(120, 24), text=10, new=2, repeats=1)
    slot = 2 * lm.config.num_kv_heads * (2 * 8 * 4 + 8) # layers, heads, fp32 keys and values, a position
    assert rows.cache_bytes.tolist() == [130 * slot, 34 * slot]
    assert rows.cache_ratio.tolist() == pytest.approx([1, 130 / 34]) and rows.budget.tolist() == [1.0, 0.2]
    assert (rows[["prefill_s", "prefill_cpu_s", "decode_s", "decode_cpu_s"]] > 0).all(axis=None)
    assert rows.prefill_ratio[0] == rows.decode_ratio[0] == 1.0


def test_embeddings_have_the_models_own_length():
    lm = random_lm()
    drawn = drop_buys.embeddings(lm, 50)
    assert torch.allclose(drawn.norm(dim=-1), lm.weights["embed"].norm(dim=-1).mean().expand(1, 50), rtol=1e-5)
    assert not torch.equal(drawn[0, 0], drawn[0, 1])


def test_the_projection_by_hand():
    """Llama-2-7B on a P40: prefill is arithmetic at 12 TFLOP/s, a decoded token reads 13.2 GB of weights and the cache."""
    model = shape("Llama-2-7B")
    body, head = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32000 * 4096
    prompt = 2940
    prefill = (2 * body * prompt + 2 * 32 * 4096 * prompt * (prompt + 1) + 2 * head) / 12e12
    decode = sum(2 * (body + head) + 524_288 * (prompt + step) for step in range(1, 15)) / 346e9
    assert projected_s("P40", 2880, 15) == pytest.approx(prefill + decode, rel=0.01)
    assert model.kv_bytes_per_token(16) == 524_288


@pytest.mark.parametrize("gpu", ["P40", "A100-80GB"])
def test_longer_answers_gain_less(gpu):
    gains = [projected_speedup(gpu, 576, new) for new in drop_buys.ANSWERS]
    assert all(a > b for a, b in zip(gains, gains[1:])) and gains[-1] < 1.5 and 4 < gains[0] < 6


def test_the_recorded_prefill_falls_at_least_four_times():
    """The measurement of issue and paper: 576 of 2,880 visual tokens through SmolLM2, ratios within one process."""
    rows = load_recorded("token_dropping", "drop_buys").set_index("visual_tok")
    assert list(rows.index) == list(COUNTS)
    assert rows.prefill_cpu_ratio[576] >= 4 and rows.prefill_ratio[576] >= 4
    assert rows.cache_ratio[576] == pytest.approx(2940 / 636, rel=0.01)
    assert 1 <= rows.decode_cpu_ratio[576] < rows.prefill_cpu_ratio[576]
    gains = [measured_speedup(rows.reset_index(), 576, new) for new in (1, 15, 512)]
    assert gains[0] > gains[1] > gains[2] > 1


@pytest.mark.model
def test_the_real_cache_has_the_recorded_bytes(smollm2):
    cache = drop_buys.prefilled(smollm2, 288)
    recorded = load_recorded("token_dropping", "drop_buys").set_index("visual_tok").cache_bytes[288]
    assert cache.num_bytes * 348 // 363 == recorded
