"""The mini-LM: the training forward is the model that runs, depth schedules included, and the committed weights pass their gates."""
import pytest
import torch

from frugal.data.code_text import CORPUS_SHA256, heldout_windows
from frugal.models import load_card, mini_lm

TINY = dict(mini_lm.SHAPE, vocab_size=300, hidden_size=32, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48,
            max_positions=300)


def tiny(seed=0):
    weights = mini_lm.fresh_weights(seed, TINY)
    generator = torch.Generator().manual_seed(seed)
    return {n: w + 0.3 * torch.randn(w.shape, generator=generator) for n, w in weights.items()}


def test_training_forward_is_the_model():
    weights, tokens = tiny(), torch.randint(0, 300, (2, 150), generator=torch.Generator().manual_seed(1))
    states = mini_lm.training_states(weights, tokens, exits=(1, 3), shape=TINY)
    ran = mini_lm.make_lm(weights, TINY).run(tokens, hidden=True)
    for state, wanted in zip(states, (ran.hidden[1], ran.hidden[3], ran.hidden[4]), strict=True):
        assert torch.allclose(state, wanted, atol=1e-3)
    assert torch.allclose(mini_lm.training_logits(weights, states[-1], TINY), ran.logits, atol=1e-2)


def test_a_layer_that_nobody_runs_is_not_there():
    weights, tokens = tiny(), torch.randint(0, 300, (1, 20))
    skipped = mini_lm.training_states(weights, tokens, [20, 0, 20, 20], shape=TINY)[-1]
    assert torch.allclose(skipped, mini_lm.make_lm(weights, TINY).run(tokens, layers=[0, 2, 3], hidden=True).hidden[-1], atol=1e-3)


def test_later_tokens_do_not_reach_back():
    weights, tokens = tiny(), torch.randint(0, 300, (1, 140))
    changed = tokens.clone()
    changed[0, 130:] = 7
    one, other = (mini_lm.training_states(weights, t, [140, 100, 60, 140], shape=TINY)[-1] for t in (tokens, changed))
    assert torch.allclose(one[:, :130], other[:, :130], atol=1e-5) and not torch.allclose(one[:, 130:], other[:, 130:], atol=1e-2)


# -- the committed weights ---------------------------------------------------------------------------------------------

# nats: the loss, what depth budgets (the first layer and the top) add to it, and what leaving after three layers adds
GATES = {"full": 3.7, "added": {3: 0.2, 6: 0.1, 9: 0.05}, "agree": {3: 0.62, 6: 0.7, 9: 0.76}, "exit_3": 0.4}

@pytest.fixture(scope="module")
def trained():
    return mini_lm.load_mini_lm(), heldout_windows(mini_lm.CONTEXT + 1, 16)


def loss_and_choice(lm, windows, layers):
    logits = lm.run(windows[:, :-1], layers=layers).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())), logits.argmax(-1)


def test_the_card_names_the_corpus_and_the_shape():
    card = load_card("mini_lm")
    assert card["data_hash"] == CORPUS_SHA256 and card["shape"] == mini_lm.SHAPE


def test_trained_weights_pass_their_gates(trained):
    """Half the layers lose little, a quarter more; leaving early loses more than skipping; without the warm-up layer nothing is left."""
    lm, windows = trained
    full, best = loss_and_choice(lm, windows, list(range(12)))
    assert full < GATES["full"]
    for depth in (3, 6, 9):
        lost, choice = loss_and_choice(lm, windows, [0, *range(12 - depth + 1, 12)])
        assert lost - full < GATES["added"][depth] and float((choice == best).float().mean()) > GATES["agree"][depth]
    early, _ = loss_and_choice(lm, windows, [0, 1, 2])
    assert 0 < early - full < GATES["exit_3"]
    assert loss_and_choice(lm, windows, list(range(6, 12)))[0] - full > 1
