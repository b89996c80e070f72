"""Weights and cards: what is saved comes back, and a file that does not match its card is refused."""

import json

import pytest
import torch

from frugal.models import WeightsError, list_weights, load_card, load_weights, save_weights

CARD = {"recipe": "python recipes/train_tiny.py", "seed": 0}


@pytest.fixture
def stored(tmp_path):
    state = {"w": torch.tensor([[0.5, -2.0], [3.0, 0.0]]), "ids": torch.tensor([1, 2])}
    save_weights("tiny_net", state, CARD, tmp_path)
    return tmp_path, state


def test_round_trip(stored):
    folder, state = stored
    loaded, card = load_weights("tiny_net", folder)
    assert (
        loaded["w"].dtype == torch.float32
        and torch.equal(loaded["w"], state["w"])
        and torch.equal(loaded["ids"], state["ids"])
    )
    assert (
        card["seed"] == 0
        and card["num_parameters"] == 6
        and card["num_bytes"] == (folder / "tiny_net.safetensors").stat().st_size
    )
    assert (
        list_weights(folder=folder) == ["tiny_net"]
        and load_weights("tiny_net", folder, torch.float64)[0]["w"].dtype == torch.float64
    )
    assert sorted(p.name for p in folder.iterdir()) == ["tiny_net.json", "tiny_net.safetensors"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""], ids=["cut", "bit", "empty"]
)
def test_a_damaged_file_is_refused(stored, damage):
    folder, _ = stored
    path = folder / "tiny_net.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match="does not match its card.*train_tiny"):
        load_weights("tiny_net", folder)


def test_missing_files_and_bad_cards(stored):
    folder, _ = stored
    with pytest.raises(WeightsError, match="no card for 'other'.*tiny_net"):
        load_weights("other", folder)
    with pytest.raises(WeightsError, match="lower-case"):
        load_weights("../tiny_net", folder)
    (folder / "tiny_net.safetensors").unlink()
    with pytest.raises(WeightsError, match="missing; restore it or run"):
        load_weights("tiny_net", folder)
    (folder / "tiny_net.json").write_text("{")
    with pytest.raises(WeightsError, match="not JSON"):
        load_card("tiny_net", folder)
    (folder / "tiny_net.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(WeightsError, match="sha256"):
        load_card("tiny_net", folder)


def test_values_that_fp16_cannot_hold(tmp_path):
    with pytest.raises(WeightsError, match="'w'.*1e\\+05"):
        save_weights("big", {"w": torch.tensor([1e5])}, CARD, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list_weights())
def test_every_committed_card_matches_its_weights(name):
    state, card = load_weights(name)
    assert (
        card["num_parameters"] == sum(t.numel() for t in state.values())
        and {"recipe", "seed", "data_hash", "metrics"} <= card.keys()
    )
