"""The recipes' training loop: a run that was stopped and resumed ends with the bits of an unbroken one; gates stop a card."""
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from frugal import models
from frugal.models.quantizers import VectorQuantizer
from frugal.models.trunk import Trunk

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import training  # noqa: E402
from training import Plan, fit, halved, optimizers, publish, rate  # noqa: E402


class Small(nn.Module):
    """A block, a codebook (a buffer that learns) and a head."""

    def __init__(self):
        super().__init__()
        self.trunk, self.codes, self.head = Trunk(8, 1, 2), VectorQuantizer(4, 8), nn.Linear(8, 1)


def fresh() -> Small:
    torch.manual_seed(1)
    return Small()


def loss(model, step, generator):
    x = torch.randn(16, 3, 8, generator=generator)
    found = model.codes(model.trunk(x))
    return (model.head(found.latents)[..., 0] - x.sum(-1).sign()).square().mean() + found.loss, {"step": step}


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_stopped_and_resumed_is_the_same_run(tmp_path, ema):
    plan = Plan(steps=12, warmup=3, ema=ema, every=4)
    whole, broken = fresh(), fresh()
    assert fit(whole, loss, tmp_path / "whole", plan)["step"] == 12

    def stops(model, step, generator):
        if step == 6:
            raise KeyboardInterrupt
        return loss(model, step, generator)

    with pytest.raises(KeyboardInterrupt):
        fit(broken, stops, tmp_path / "broken", plan)
    again = fresh()
    fit(again, loss, tmp_path / "broken", plan)                             # from the checkpoint after step 4
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(whole.head.weight, fresh().head.weight)


def test_muon_gets_the_matrices_of_blocks_and_only_narrows():
    model = fresh()
    (muon, adam), peaks = optimizers(model, Plan(steps=1))
    counts = [len(opt.param_groups[0]["params"]) for opt in (muon, adam)]
    assert counts == [4, len(list(model.parameters())) - 4] and peaks == [0.01, 2e-3]
    only, _ = optimizers(model, Plan(steps=1, only="head"))
    assert sum(len(opt.param_groups[0]["params"]) for opt in only) == 2


def test_the_rate_warms_up_and_falls_to_its_low_end():
    plan = Plan(steps=1000, warmup=10, low=0.05)
    rates = [rate(step, plan) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1) and max(rates) <= 1 and rates[-1] == pytest.approx(0.05, abs=1e-4)
    assert all(b <= a for a, b in zip(rates[10:], rates[11:]))


def test_a_diverged_run_stops_and_names_the_step(tmp_path):
    with pytest.raises(SystemExit, match="at step 0"):
        fit(fresh(), lambda model, step, generator: (model.head.weight.sum() * float("nan"), {}), tmp_path, Plan(steps=2))


def test_a_missed_gate_stops_publishing_and_force_says_so_on_the_card(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "save_weights", lambda name, state, card: models.save_weights(name, state, card, tmp_path))
    card = {"recipe": "recipes/x.py", "seed": 0, "metrics": {"psnr": 17.5}}
    with pytest.raises(SystemExit, match="gates missed"):
        publish("small", fresh(), card, {"psnr": 18.0})
    assert not list(tmp_path.iterdir())
    publish("small", fresh(), card, {"psnr": 18.0}, force=True)
    assert models.load_card("small", tmp_path)["missed"] == {"psnr": [17.5, 18.0]}
    publish("small", fresh(), card, {"psnr": 17.0})
    assert "missed" not in models.load_card("small", tmp_path)


def test_halved_weights_are_those_a_reader_loads(tmp_path):
    model = halved(fresh())
    models.save_weights("small", model.state_dict(), {"recipe": "recipes/x.py"}, tmp_path)
    loaded, _ = models.load_weights("small", tmp_path)
    assert all(torch.equal(t.float(), loaded[name].float()) for name, t in model.state_dict().items())
