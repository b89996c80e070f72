"""The synthetic sessions: what is promised of them, and the true chances against a plain loop."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.data import emoji_sessions as data
from frugal.data.emoji_sessions import NONE, catalogue, make_sessions, next_probs


@pytest.fixture(scope="module")
def sessions():
    return make_sessions("train", 200)


def test_the_catalogue_is_the_emoji_and_a_tenth_of_it_is_cold():
    shop = catalogue()
    assert shop.num_items == 1861 and shop.cold.sum() == 186 and shop.popularity.sum() == pytest.approx(1)
    assert shop.index("fox") == shop.names.index("fox")
    with pytest.raises(ValueError, match="no emoji is called 'foxx'"):
        shop.index("foxx")


def test_sessions_hold_warm_items_once_each_and_end_where_they_say(sessions):
    held = sessions.items != NONE
    assert (held.sum(1) == sessions.lengths).all() and sessions.lengths.min() == 10 and sessions.lengths.max() == 20
    assert (held[:, 1:] <= held[:, :-1]).all()                                            # nothing after an end
    for row in sessions.items:
        row = row[row != NONE]
        assert len(set(row)) == len(row) and not catalogue().cold[row].any()


def test_targets_are_new_and_of_their_kind(sessions):
    cold, (natural, warm, cold_one) = catalogue().cold, sessions.targets.T
    assert not cold[warm].any() and cold[cold_one].all()
    assert (natural == np.where(cold[natural], cold_one, warm)).all()
    assert not (sessions.items[:, :, None] == sessions.targets[:, None]).any()


def test_more_users_change_no_earlier_one_and_splits_differ(sessions, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 20)
    few, more = make_sessions("test", 15), make_sessions("test", 50)
    assert (few.items == more.items[:15]).all() and (few.targets == more.targets[:15]).all()
    assert (few.users.taste == more.users.taste[:15]).all()
    assert (make_sessions("validation", 15).items != few.items).any() and len(more.items) == 50


def loop_probs(users, items, user):
    """The definition, one item after the other."""
    shop, picked = catalogue(), [i for i in items[user] if i != NONE]
    weight = [0.0 if i in picked else shop.popularity[i] * np.exp(1.5 * users.taste[user] @ shop.taste[i]) for i in range(shop.num_items)]
    groups = users.likes.shape[1]
    mass = [sum(w for w, g in zip(weight, shop.subgroup) if g == group) for group in range(groups)]
    wish = list(users.likes[user])
    if picked:
        wish = [0.5 * w + (0.5 if group == shop.subgroup[picked[-1]] else 0) for group, w in enumerate(wish)]
    wish = [w if m > 0 else 0 for w, m in zip(wish, mass)]
    wish = [w / sum(wish) for w in wish]
    return [0.85 * wish[g] * w / mass[g] + 0.15 * w / sum(weight) if w else 0.0 for w, g in zip(weight, shop.subgroup)]


@settings(max_examples=4, deadline=None)
@given(user=st.integers(0, 199), length=st.integers(0, 10))
def test_true_chances_against_a_loop(user, length):
    sessions = make_sessions_once()
    users = data.Users(sessions.users.likes[user:user + 1], sessions.users.taste[user:user + 1])
    items = sessions.items[user:user + 1, :length]
    found = next_probs(users, items)
    assert found.sum() == pytest.approx(1) and np.allclose(found[0], loop_probs(users, items, 0), rtol=1e-9, atol=1e-15)


def make_sessions_once(kept=[]):  # noqa: B006 one draw for all examples
    if not kept:
        kept.append(make_sessions("train", 200))
    return kept[0]


def test_targets_follow_the_true_chances(sessions):
    """The mean chance of what was drawn is the sum of squared chances, up to chance."""
    chances = next_probs(sessions.users, sessions.items)
    drawn, expected = chances[np.arange(200), sessions.targets[:, 0]], (chances ** 2).sum(1)
    spread = ((chances ** 3).sum(1) - expected ** 2).mean() ** 0.5 / 200 ** 0.5
    assert abs(drawn.mean() - expected.mean()) < 4 * spread
    assert np.roll(chances, 1, axis=0)[np.arange(200), sessions.targets[:, 0]].mean() < expected.mean() / 3   # another user's would not


def test_taste_says_nothing_about_meaning():
    """Subgroup means of the taste factors vary as those of groups drawn at random do."""
    shop = catalogue()
    means = np.stack([shop.taste[shop.subgroup == g].mean(0) * (shop.subgroup == g).sum() ** 0.5 for g in range(99)])
    assert (means ** 2).sum(1).mean() == pytest.approx(1, abs=0.15)
    sorted_taste = np.sort(shop.taste, 0)                                                # planted: taste that follows the subgroup
    order = np.argsort(shop.subgroup, kind="stable")
    tied = np.empty_like(shop.taste)
    tied[order] = sorted_taste
    wrong = np.stack([tied[shop.subgroup == g].mean(0) * (shop.subgroup == g).sum() ** 0.5 for g in range(99)])
    assert (wrong ** 2).sum(1).mean() > 5


@pytest.mark.parametrize("split, count, said", [("tests", 5, "split must be one of train, validation, test, got 'tests'"),
                                                ("test", 0, "num_users must be at least 1, got 0")])
def test_bad_requests(split, count, said):
    with pytest.raises(ValueError, match=said):
        make_sessions(split, count)


def test_unknown_items_are_refused(sessions):
    with pytest.raises(ValueError, match="items must be in 0..1860"):
        next_probs(sessions.users, np.full((200, 1), 1861))
