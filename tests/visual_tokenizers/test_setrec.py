"""SETRec against its definitions: mask, order of tokens, simultaneous queries, prefixes in one pass, grounding, loss."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.masks import set_attention_mask
from frugal.visual_tokenizers.setrec import MAX_ITEMS, SETRec, SetShape, ground_items

ITEMS = 30
SMALL = {"width": 16, "num_blocks": 2, "num_heads": 2, "mlp": 32, "cf_dim": 6, "text_dim": 5}


def tiny(cls=SETRec, **options):
    torch.manual_seed(0)
    model = cls(torch.randn(ITEMS, 6), torch.randn(ITEMS, 5), SetShape(**{"n_sem": 3, **SMALL, **options})).eval()
    with torch.no_grad():                                               # fresh ones are small: a fault would hide in them
        for p in (model.positions, model.queries, model.marks):
            p.mul_(10)
    return model


def some(*shape, seed=1):
    return torch.randint(ITEMS, shape, generator=torch.Generator().manual_seed(seed))


# -- the mask -----------------------------------------------------------------------------------------------------

def loop_mask(num_instr, num_items, num_tokens, num_resp, inside):
    kinds = [("instr", i) for i in range(num_instr)] + [("item", i) for i in range(num_items) for _ in range(num_tokens)]
    kinds += [("resp", i) for i in range(num_resp)] + [("query", 0)] * num_tokens
    rows = []
    for i, mine in enumerate(kinds):
        row = []
        for j, theirs in enumerate(kinds):
            if i == j:
                row.append(True)
            elif mine == theirs:
                row.append(inside and mine[0] == "item")
            else:
                row.append(j < i)
        rows.append(row)
    return torch.tensor(rows)


@settings(max_examples=40, deadline=None)
@given(instr=st.integers(0, 3), items=st.integers(0, 5), tokens=st.integers(1, 5), resp=st.integers(0, 3), inside=st.booleans())
def test_mask_against_a_double_loop(instr, items, tokens, resp, inside):
    assert torch.equal(set_attention_mask(instr, items, tokens, resp, inside), loop_mask(instr, items, tokens, resp, inside))


@pytest.mark.parametrize("bad", [(-1, 2, 2, 1), (1, 2, 0, 1), (1, 2, 2, -1), (1, True, 2, 1)])
def test_mask_refuses_bad_counts(bad):
    with pytest.raises(ValueError, match="must be a whole number of at least"):
        set_attention_mask(*bad)


# -- order within an item -----------------------------------------------------------------------------------------

def shuffled_difference(model, seed):
    """Largest change of the answers when the tokens of every history item are put in another order."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, 5, model.num_tokens, model.shape.width, generator=draw)
    order = torch.rand(2, 5, model.num_tokens, generator=draw).argsort(-1)[..., None].expand_as(tokens)
    with torch.no_grad():
        return float((model.answers(tokens) - model.answers(tokens.gather(2, order))).abs().max())


class ConsecutivePositions(SETRec):
    """Wrong: every token has a position of its own."""

    def sequence(self, tokens):
        steps = torch.arange(self.num_tokens)[:, None] * torch.linspace(-1, 1, self.shape.width)
        return super().sequence(tokens + steps)


class CausalMask(SETRec):
    """Wrong: plain causal attention."""

    def mask(self, num_items):
        return torch.ones_like(super().mask(num_items)).tril()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_order_within_an_item_says_nothing(inside, seed):
    assert shuffled_difference(tiny(full_attention=inside), seed) < 1e-5


@pytest.mark.parametrize("cls", [ConsecutivePositions, CausalMask])
def test_broken_sets_are_noticed(cls):
    assert shuffled_difference(tiny(cls), 0) > 1e-3


def test_order_of_the_items_does_matter():
    model, tokens = tiny(), torch.randn(1, 5, 4, 16)
    with torch.no_grad():
        assert float((model.answers(tokens) - model.answers(tokens.flip(1))).abs().max()) > 1e-3


# -- simultaneous generation --------------------------------------------------------------------------------------

def one_by_one(model, tokens):
    """Each query alone, in a pass of its own."""
    x, count = model.sequence(tokens), tokens.shape[1]
    head = x.shape[1] - model.num_tokens
    mask = model.mask(count)[:head + 1, :head + 1]
    return torch.cat([model.trunk(torch.cat([x[:, :head], x[:, head + q:head + q + 1]], 1), mask)[:, -1:] for q in range(model.num_tokens)], 1)


class QueriesTalk(SETRec):
    """Wrong: queries see each other."""

    def mask(self, num_items):
        mask = super().mask(num_items)
        mask[-self.num_tokens:, -self.num_tokens:] = True
        return mask


def test_all_queries_in_one_pass_are_each_alone():
    tokens = torch.randn(2, 4, 4, 16)
    with torch.no_grad():
        assert torch.allclose(tiny().answers(tokens), one_by_one(tiny(), tokens), atol=1e-5)
        assert not torch.allclose(tiny(QueriesTalk).answers(tokens), one_by_one(tiny(), tokens), atol=1e-3)


@pytest.mark.parametrize("inside", [False, True])
def test_prefixes_in_one_pass_are_those_of_separate_passes(inside):
    model, tokens = tiny(full_attention=inside), torch.randn(2, 9, 4, 16)
    with torch.no_grad():
        found = model.prefix_answers(tokens, [2, 5, 9])
        for place, prefix in enumerate([2, 5, 9]):
            assert torch.allclose(found[:, place], model.answers(tokens[:, :prefix]), atol=1e-5)


# -- grounding and loss -------------------------------------------------------------------------------------------

@settings(max_examples=20, deadline=None)
@given(beta=st.floats(0, 1), tokens=st.integers(1, 5), seed=st.integers(0, 99))
def test_grounding_against_a_loop(beta, tokens, seed):
    draw = torch.Generator().manual_seed(seed)
    answers, items = torch.randn(2, tokens, 8, generator=draw), torch.randn(6, tokens, 8, generator=draw)
    found = ground_items(answers, items, beta)
    for b in range(2):
        for v in range(6):
            want = sum(((1 - beta) if q == 0 else beta) * float(answers[b, q] @ items[v, q]) for q in range(tokens))
            assert float(found[b, v]) == pytest.approx(want, abs=1e-4)


def test_beta_switches_kinds_of_tokens_off():
    model, history = tiny(), some(3, 6)
    first, items = model.scores(history, 0.0), model.catalogue_tokens()
    items[:, 1:] = 0
    assert torch.allclose(first, ground_items(model.answers(model.catalogue_tokens()[history]), items, 0.0), atol=1e-5)
    silent = tiny()
    silent.cf.zero_()                                                   # what a cold item looks like to CF
    assert float(silent.scores(history, 0.0).std(1).max()) < 1e-5 < 1e-3 < float(silent.scores(history, 1.0).std(1).min())


@pytest.mark.parametrize("inside", [False, True])
def test_loss_against_one_pass_a_prefix(inside):
    """Each prefix and query on its own: cross entropy over the warm items, mean over known targets, + 0.6 x reconstruction."""
    model, warm = tiny(full_attention=inside), torch.arange(0, ITEMS, 2)
    items = warm[some(3, 8) % len(warm)]
    items[0, 6:] = -1
    with torch.no_grad():
        tokens = model.catalogue_tokens()
        wanted = []
        for b in range(3):
            for prefix in (3, 6):
                if items[b, prefix] >= 0:
                    answers = model.answers(tokens[items[b, :prefix]][None])[0]
                    logits = torch.einsum("nw,mnw->nm", answers, tokens[warm])
                    target = (warm == items[b, prefix]).nonzero()[0]
                    wanted.append(F.cross_entropy(logits, target.expand(4)))
        rebuilt = model.identifier(model.cf[warm], model.text[warm])[1]
        found, numbers = model.loss(items, [3, 6], warm)
    assert float(found) == pytest.approx(float(torch.stack(wanted).mean() + 0.6 * rebuilt), rel=1e-4)
    assert set(numbers) == {"cf", "sem", "rebuilt"}


def test_no_cold_item_gets_a_gradient():
    model, warm = tiny(), torch.arange(0, ITEMS, 2)
    model.cf.requires_grad_(True)
    model.text.requires_grad_(True)
    model.loss(warm[some(2, 7) % len(warm)], [4, 6], warm)[0].backward()
    for grad in (model.cf.grad, model.text.grad):
        assert (grad[1::2] == 0).all() and (grad[::2] != 0).any()


@pytest.mark.parametrize("n_sem", [0, 1, 8])
def test_any_number_of_semantic_tokens(n_sem):
    model = tiny(n_sem=n_sem)
    assert model.encode(some(2, 3)).shape == (2, 3, 1 + n_sem, 16) and model.scores(some(2, 3)).shape == (2, ITEMS)


# -- bad input ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call, said", [
    (lambda m: m.scores(torch.zeros(1, 0, dtype=torch.long)), "the history is empty: give at least one item"),
    (lambda m: m.scores(torch.tensor([[3, ITEMS]])), r"items must be in 0\.\.29, got 3\.\.30; emoji names become numbers"),
    (lambda m: m.encode(torch.tensor([-1])), r"items must be in 0\.\.29, got -1\.\.-1"),
    (lambda m: m.scores(torch.tensor([[3]]), beta=1.2), r"beta must be in \[0, 1\] .*got 1.2"),
    (lambda m: m.answers(torch.zeros(1, 13, 4, 16)), "a history has 1 to 12 items, got 13"),
    (lambda m: ground_items(torch.zeros(1, 3, 16), torch.zeros(5, 4, 16), 0.5), "3 answers for items of 4 tokens")])
def test_bad_input_is_one_clear_error(call, said):
    with pytest.raises(ValueError, match=said):
        call(tiny())


def test_a_long_history_is_read_from_its_end():
    model, history = tiny(), some(2, 20)
    assert torch.equal(model.scores(history), model.scores(history[:, -MAX_ITEMS:]))
