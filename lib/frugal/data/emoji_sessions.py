"""Synthetic users who pick emoji one after another: sessions with two reasons that no single embedding of an item holds.

Why a user picks what: a few subgroups of meaning ("animal-mammal", "food-sweet", ...), which a text model reads off the
names, and a hidden 16-dimensional taste, drawn without any regard to meaning, which only co-picking reveals. A session
stays in its subgroup half of the time, wanders over the whole catalogue now and then, and never picks an item twice.
One item in ten is *cold*: no training session holds it; it is a target of held-out users only.

The generator is known, so the best possible ranking is known too: `next_probs` gives the true chances of the next pick.
"""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from frugal.data.emoji import load_emoji

SEED, TASTE_DIM, MAX_LENGTH, MIN_LENGTH = 2502, 16, 20, 10
NUM_SUBGROUPS = 3                        # that a user likes
TASTE, POPULARITY = 1.5, 0.7             # how sharply taste decides; exponent of the long tail
STAY, WANDER = 0.5, 0.15                 # chance to stay in the last pick's subgroup; to pick from everywhere
BLOCK = 1_000                            # users of one seed
SPLITS = {"train": 0, "validation": 1, "test": 2}
NONE = -1                                # no pick: a session's unused places


@dataclass(frozen=True)
class Catalogue:
    """What can be picked. subgroup: (N,) place of each item's subgroup. taste: (N, 16), a user's taste times it is about
    standard normal. popularity: (N,) sums to 1. cold: (N,) True for items that no training session holds."""
    names: tuple[str, ...]
    subgroup: Int[ndarray, "n"]
    taste: Float[ndarray, "n 16"]
    popularity: Float[ndarray, "n"]
    cold: Bool[ndarray, "n"]

    @property
    def num_items(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Item of that name. Raises ValueError for an unknown one, with names that are near."""
        return load_emoji(32).index(name)


@dataclass(frozen=True)
class Users:
    """What is hidden about users. likes: (U, groups) chance of each subgroup. taste: (U, 16)."""
    likes: Float[ndarray, "u groups"]
    taste: Float[ndarray, "u 16"]


@dataclass(frozen=True)
class Sessions:
    """items: (U, 20) warm items in order, NONE after the end; lengths: (U,) 10 to 20. targets: (U, 3) the pick that
    follows: as it comes, if it has to be warm, and if it has to be cold (one of the two is the first). users: the truth."""
    items: Int[ndarray, "u 20"]
    lengths: Int[ndarray, "u"]
    targets: Int[ndarray, "u 3"]
    users: Users


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The emoji with their subgroups, a taste and a popularity each; one in ten is cold. The same on every machine."""
    emoji = load_emoji(32).emoji
    groups = {name: place for place, name in enumerate(sorted({entry.subgroup for entry in emoji}))}
    draw, count = np.random.default_rng(SEED), len(emoji)
    cold = np.zeros(count, bool)
    cold[draw.permutation(count)[:count // 10]] = True
    popularity = (1.0 + draw.permutation(count)) ** -POPULARITY
    return Catalogue(tuple(entry.name for entry in emoji), np.array([groups[entry.subgroup] for entry in emoji]),
                     draw.standard_normal((count, TASTE_DIM)) / TASTE_DIM ** 0.5, popularity / popularity.sum(), cold)


def make_sessions(split: str = "test", num_users: int = 2_000) -> Sessions:
    """The first `num_users` sessions of a split, in blocks of one seed each, so that more users change no earlier one.

    Raises ValueError for an unknown split or for less than one user.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if num_users < 1:
        raise ValueError(f"num_users must be at least 1, got {num_users}")
    blocks = [_block(SPLITS[split], block) for block in range(-(-num_users // BLOCK))]
    rows = [np.concatenate([getattr(b, name) for b in blocks])[:num_users] for name in ("items", "lengths", "targets")]
    users = [np.concatenate([getattr(b.users, name) for b in blocks])[:num_users] for name in ("likes", "taste")]
    return Sessions(*rows, Users(*users))


def _block(split: int, block: int) -> Sessions:
    shop, draw = catalogue(), np.random.default_rng([SEED, split, block])
    users = _users(draw)
    lengths = draw.integers(MIN_LENGTH, MAX_LENGTH + 1, BLOCK)
    items = np.full((BLOCK, MAX_LENGTH), NONE)
    seen = np.tile(shop.cold, (BLOCK, 1))                               # cold items count as taken
    for step in range(MAX_LENGTH):
        chances = next_probs(users, items[:, :step])
        pick = _race(np.where(seen, 0.0, chances), draw)
        items[:, step], seen[np.arange(BLOCK), pick] = pick, True
    items[np.arange(MAX_LENGTH) >= lengths[:, None]] = NONE
    return Sessions(items, lengths, _targets(users, items, draw), users)


def _users(draw: np.random.Generator) -> Users:
    """Three subgroups each, in uneven shares; larger subgroups are liked by more users, in proportion to their root."""
    size = np.bincount(catalogue().subgroup)
    order = (draw.standard_exponential((BLOCK, len(size))) / size ** 0.5).argsort(1)[:, :NUM_SUBGROUPS]
    likes = np.zeros((BLOCK, len(size)))
    np.put_along_axis(likes, order, draw.dirichlet(np.ones(NUM_SUBGROUPS), BLOCK), 1)
    return Users(likes, draw.standard_normal((BLOCK, TASTE_DIM)))


def _targets(users: Users, items: ndarray, draw: np.random.Generator) -> ndarray:
    cold, chances = catalogue().cold, next_probs(users, items)
    first = _race(chances, draw)
    warm, other = _race(np.where(cold, 0.0, chances), draw), _race(np.where(cold, chances, 0.0), draw)
    return np.stack([first, np.where(cold[first], warm, first), np.where(cold[first], first, other)], 1)


def next_probs(users: Users, items: Int[ndarray, "u t"]) -> Float[ndarray, "u n"]:
    """True chances of the next pick after these picks (NONE = no pick), cold items included; rows sum to 1.

    What was picked is not picked again. Raises ValueError for an item that is not in the catalogue.
    """
    shop = catalogue()
    if items.size and not (NONE <= items.min() and items.max() < shop.num_items):
        raise ValueError(f"items must be in 0..{shop.num_items - 1} (or {NONE}), got {items.min()}..{items.max()}")
    weight = shop.popularity * np.exp(TASTE * users.taste @ shop.taste.T)                            # (U, N)
    rows, places = np.nonzero(items != NONE)
    weight[rows, items[rows, places]] = 0.0
    member = np.eye(users.likes.shape[1])[shop.subgroup]                                             # (N, groups)
    mass = weight @ member
    wish = users.likes.copy()
    if items.shape[1]:
        last = np.where(items != NONE, np.arange(items.shape[1]), -1).max(1)
        some = last >= 0
        stay = member[items[some, last[some]]]
        wish[some] = (1 - STAY) * wish[some] + STAY * stay
    wish = np.where(mass > 0, wish, 0.0)
    wish /= np.maximum(wish.sum(1, keepdims=True), 1e-12)
    inside = (wish / np.maximum(mass, 1e-300))[:, shop.subgroup] * weight
    chances = (1 - WANDER) * inside + WANDER * weight / weight.sum(1, keepdims=True)
    return chances / chances.sum(1, keepdims=True)


def _race(chances: Float[ndarray, "u n"], draw: np.random.Generator) -> Int[ndarray, "u"]:
    """One item a row, drawn by its chances: the smallest of exponential times that run at these rates."""
    times = draw.standard_exponential(chances.shape, dtype=np.float32)
    possible = chances > 0                                              # 0 / 0 would win every race
    return np.where(possible, times / np.where(possible, chances, 1.0), np.inf).argmin(1)
