"""The small language of the emoji scenes: 104 names in eight themes, 28 other words, and a tokenizer of whole words.

Each name is one token, so captions are scored without a parser. Names are Unicode's one-word names of single emoji.
"""
from collections.abc import Iterable

THEMES: dict[str, tuple[str, ...]] = {
    "animal": ("monkey dog fox cat lion horse zebra cow pig elephant rabbit bear koala panda "
               "chicken penguin duck owl flamingo parrot whale dolphin fish shark octopus jellyfish"),
    "produce": ("grapes melon watermelon lemon banana pineapple mango pear peach cherries strawberry tomato "
                "avocado eggplant carrot cucumber broccoli onion"),
    "meal": ("bread croissant pretzel pancakes waffle hamburger pizza sandwich taco popcorn "
             "doughnut cookie shortcake cupcake candy lollipop"),
    "road": ("locomotive train tram bus ambulance taxi automobile tractor motorcycle bicycle skateboard wheel "
             "airplane parachute helicopter rocket"),
    "sport": "baseball softball basketball volleyball tennis bowling badminton lacrosse",
    "wear": "sunglasses necktie jeans scarf gloves dress handbag backpack",
    "music": "saxophone accordion guitar trumpet violin drum",
    "tool": "hammer axe shield wrench screwdriver magnet",
}
THEMES = {theme: tuple(names.split()) for theme, names in THEMES.items()}
NAMES: tuple[str, ...] = tuple(name for names in THEMES.values() for name in names)
THEME_OF: dict[str, str] = {name: theme for theme, names in THEMES.items() for name in names}
NAME_INDEX: dict[str, int] = {name: index for index, name in enumerate(NAMES)}

END = "<end>"
NUMBERS = ("zero", "one", "two", "three", "four")
PLACES = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")
WORDS = (
    END,
    "yes",
    "no",
    "nothing",
    *NUMBERS,
    "is",
    "there",
    "a",
    "what",
    "at",
    "how",
    "many",
    "describe",
    ":",
    "?",
    *PLACES,
)
VOCAB: tuple[str, ...] = WORDS + NAMES
FIRST_NAME = len(WORDS)                         # ids from here on are names, in the order of NAMES


class SceneVocab:
    """Words to ids and back; `lm.tokenizer` of the mini-VLM. The end of text is id 0."""

    vocab_size, bos_id, eos_id = len(VOCAB), None, 0

    def __init__(self):
        self.ids = {word: index for index, word in enumerate(VOCAB)}

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of the words, which spaces separate. Raises ValueError for a word outside the vocabulary."""
        words = text.split()
        for word in words:
            if word not in self.ids:
                near = [name for name in NAMES if word and word[:3] == name[:3]]
                raise ValueError(f"the model does not know the word {word!r}; it knows {len(NAMES)} names "
                                 f"({', '.join(near or NAMES[:5])}, ...) and the words {' '.join(WORDS[1:])}")
        return [self.ids[word] for word in words]

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Words of the ids, separated by spaces; skip_special leaves the end token out."""
        return " ".join(VOCAB[int(i)] for i in ids if not (skip_special and int(i) == self.eos_id))

    def token_str(self, token: int) -> str:
        return VOCAB[int(token)]
