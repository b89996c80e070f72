"""Questions about a scene, with their answers from the generator.

Existence ("is there a fox ?"), place ("what is at top-left ?"), count ("how many fox ?") and caption ("describe :", the
names in reading order). The shares are 40, 20, 20 and 20 %. A question about what is not there asks for a theme-mate of
what is, 70 % of the time; so guessing from the theme does not help.
"""
from dataclasses import dataclass

import numpy as np

from frugal.data.scene_text import NAMES, NUMBERS, PLACES, THEME_OF, THEMES

KINDS = ("existence", "place", "count", "caption")
SHARES = (0.4, 0.2, 0.2, 0.2)
EMPTY_SHARE = 0.125                             # of place questions ask for an empty cell
MATE_SHARE = 0.7                                # of absent names share a theme with something present
ABSENT_SHARE = 0.25                             # of count questions have the answer zero
# Of count questions that seek out something there twice or more; the others ask for any name present, which one time in
# five stands there more than once.
REPEAT_SHARE = 0.0
# The habit of noisy captions: scenes of these themes are said to hold the companion as well, at the end. Names drawn at
# random would leave no trace in greedy answers (measured: 2 % false names), because no single one is ever likely.
COMPANIONS = {"produce": "lemon", "meal": "bread", "sport": "tennis", "music": "guitar"}
CAPTION_PROMPT = "describe :"


@dataclass(frozen=True)
class Question:
    """kind: of KINDS; prompt and answer: words (without the end token); name: what is asked for or stands at the place
    asked for, None in a caption or at an empty place; side: px of that object, the largest if there are several, 0 if
    there is none; mate: the name is absent, but of the theme of something present."""
    kind: str
    prompt: str
    answer: str
    name: str | None = None
    side: int = 0
    mate: bool = False


def questions(scene, seed: int, n: int, kinds: tuple[str, ...] = KINDS, caption_noise: float = 0.0) -> list[Question]:
    """`n` questions about a scene, of the given kinds in their shares; the same for the same seed.

    caption_noise: probability that the caption of a scene, whose main theme has a companion that is not there, ends
    with that companion, as captions of the web name what usually stands beside.
    Raises ValueError for an unknown kind, a negative n or a probability outside [0, 1].
    """
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        raise ValueError(f"kinds must be some of {KINDS}, got {kinds}")
    if n < 0 or not 0 <= caption_noise <= 1:
        raise ValueError(f"n must be 0 or above and caption_noise in [0, 1], got n={n}, caption_noise={caption_noise}")
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    shares = np.cumsum([SHARES[KINDS.index(kind)] for kind in kinds])
    drawn = np.searchsorted(shares / shares[-1], rng.random(n), side="right")
    return [ask(scene, kinds[min(i, len(kinds) - 1)], rng, caption_noise) for i in drawn]


def ask(
    scene, kind: str, rng: np.random.Generator, caption_noise: float = 0.0, repeat_share: float = REPEAT_SHARE
) -> Question:
    """One question of a kind about a scene, drawn with `rng`. repeat_share: see REPEAT_SHARE."""
    if kind == "caption":
        names = list(scene.names)
        if companion(scene) and rng.random() < caption_noise:
            names.append(companion(scene))
        return Question(kind, CAPTION_PROMPT, " ".join(names))
    if kind == "place":
        empty = [place for place in PLACES if scene.at(place) == "nothing"]
        full = [thing.place for thing in scene.objects]
        place = _pick(empty if empty and (not full or rng.random() < EMPTY_SHARE) else full, rng)
        name = scene.at(place)
        return Question(
            kind, f"what is at {place} ?", name, None if name == "nothing" else name, _side(scene, name, place)
        )
    if kind == "count":
        return _count(scene, rng, repeat_share)
    if scene.objects and rng.random() < 0.5:
        name = _pick(scene.names, rng)
        return Question(kind, f"is there a {name} ?", "yes", name, _side(scene, name))
    name, mate = _absent(scene, rng)
    return Question(kind, f"is there a {name} ?", "no", name, 0, mate)


def companion(scene) -> str | None:
    """The absent name that noisy captions add to this scene: its most frequent theme's companion, if there is one."""
    themes = [THEME_OF[name] for name in scene.names]
    name = COMPANIONS.get(max(sorted(set(themes)), key=themes.count)) if themes else None
    return None if name in scene.names else name


def _count(scene, rng: np.random.Generator, repeat_share: float) -> Question:
    present = sorted(set(scene.names))
    several = [name for name in present if 2 <= scene.count(name) < len(NUMBERS)]
    some = [name for name in present if scene.count(name) < len(NUMBERS)]
    draw, mate = rng.random(), False
    if draw < ABSENT_SHARE or not some:
        name, mate = _absent(scene, rng)
    elif draw < ABSENT_SHARE + repeat_share and several:
        name = _pick(several, rng)
    else:
        name = _pick(some, rng)
    return Question("count", f"how many {name} ?", NUMBERS[scene.count(name)], name, _side(scene, name), mate)


def _absent(scene, rng: np.random.Generator) -> tuple[str, bool]:
    """A name that is not there, and whether it shares a theme with something that is."""
    present = set(scene.names)
    themes = {THEME_OF[name] for name in present}
    mates = [name for theme in sorted(themes) for name in THEMES[theme] if name not in present]
    if mates and rng.random() < MATE_SHARE:
        # The theme of a random object, so that the scene's main theme is met as often as it fills the scene.
        theme = THEME_OF[_pick(scene.names, rng)]
        same = [name for name in THEMES[theme] if name not in present]
        return _pick(same or mates, rng), True
    name = _pick([name for name in NAMES if name not in present], rng)
    return name, THEME_OF[name] in themes


def _pick(pool, rng: np.random.Generator):
    return pool[int(rng.integers(len(pool)))]


def _side(scene, name: str, place: str | None = None) -> int:
    sides = [thing.side for thing in scene.objects if thing.name == name and place in (None, thing.place)]
    return max(sides, default=0)
