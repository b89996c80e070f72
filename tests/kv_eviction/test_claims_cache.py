"""Claims of MiKV and ShadowKV: verdicts as recorded, and the recorded numbers are those of the real model."""
import pytest

from frugal.core.claims import check_recorded
from frugal.core.recording import load_recorded
from frugal.core.roofline import shape, time
from frugal.kv_eviction import cache_measurements as measure
from frugal.kv_eviction.cache_costs import DecodeStep
from frugal.kv_eviction.claims_cache import CLAIMS, PUBLISHED, batches, throughput
from frugal.kv_eviction.mikv import Mikv
from frugal.kv_eviction.shadowkv import Shadowkv


def test_verdicts_are_as_recorded():
    assert len(check_recorded(CLAIMS)) == len(CLAIMS) == len({c.key for c in CLAIMS})


def test_bytes_at_the_papers_scale_by_hand():
    """Llama-3.1-8B at 122K: 131 kB a token in full; U 1.28 GB, landmarks 1.02 GB, exact tokens and buffers."""
    model, tokens = shape("Llama-3.1-8B"), 122 * 1024
    assert model.kv_bytes_per_token(16) == 131_072
    own = PUBLISHED.formula_bytes(model, tokens, 256, 2)
    chunks = tokens // 8 - 4
    by_hand = 32 * (chunks * 8 * 160 * 2 + 8 * (chunks - 48) * (128 * 2 + 4) + 160 * 1024 * 2
                    + 2 * 8 * (4 * 8 + 48 * 8) * 128 * 2 + 8 * 256 * (8 * 128 * 2 + 4))
    assert own == by_hand and 2.4e9 < own < 2.6e9
    assert batches(tokens) == (4, 27)


def test_costs_count_what_the_switches_save():
    model, step = shape("Llama-3.1-8B"), DecodeStep(122 * 1024, 8)
    own = PUBLISHED.cost(model, step)
    assert own.link_bytes == pytest.approx(8 * 32 * 8 * 2048 * 128 * 2 * 0.4)
    assert PUBLISHED.cost(model, step, hit_rate=0.0).link_bytes == pytest.approx(own.link_bytes / 0.4)
    resident = Shadowkv(rank=160, sparse=2048, outliers=48, values="resident").cost(model, step)
    assert resident.link_bytes == 0 and resident.flops == own.flops
    full = model.decode_cost(step.context, step.batch)
    assert time(own, "A100-80GB").lower_s < time(full, "A100-80GB").lower_s
    two, four, everything = (Mikv(low_bits=2), Mikv(low_bits=4), Mikv(important=1.0, balanced=False))
    assert two.cost(model, step).bytes < four.cost(model, step).bytes < full.bytes
    assert everything.cost(model, step).bytes == pytest.approx(full.bytes, rel=0.04)     # 8 bytes of bookkeeping in 256
    assert two.cost(model, step).flops > full.flops                                      # decoding codes costs arithmetic


def test_the_link_is_the_bound_of_shadowkv():
    full, own, endless = throughput(122 * 1024, 4, 24)
    assert own == pytest.approx(24 / (0.4 * 24 * 32 * 8 * 2048 * 128 * 2 / 31.5e9), rel=0.01)
    assert full < endless < own


def test_recorded_numbers_are_the_models(smollm2):
    rows = load_recorded("kv_eviction", "mikv_quality")
    at = rows[(rows.method == "MiKV 20 %") & (rows.low_bits == 3) & (rows.seed == 0)].iloc[0]
    assert measure.copy_accuracy(smollm2, measure.new_cache(smollm2, Mikv()), 0) == pytest.approx(at["copy"], abs=0.04)
    layers = measure.recorded_layers(smollm2, 512)
    for bits in (2, 3):
        plain, balanced = (measure.mean(measure.output_error(layer, bits, used) for layer in layers) for used in (False, True))
        assert balanced < 0.85 * plain
    lost = {name: measure.mean(float(measure.energy_left(layer[name])[30]) for layer in layers[5::6]) for name in ("plain keys", "keys", "values")}
    assert 1.8 * lost["plain keys"] < lost["keys"] < lost["values"]
    caught = {o: measure.mean(measure.landmark_mass(layer, 64, "landmark", o) for layer in layers[::3]) for o in (0, 1)}
    assert caught[1] > caught[0] + 0.15
