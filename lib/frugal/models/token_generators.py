"""The trained code generators by the names of their weights, each with the tokenizer whose codes it makes.

A card's shape holds "kind" ("ar" or "maskgit") and the arguments of the class; its "tokenizer" names the weights that decode.
"""
from functools import lru_cache

from torch import nn

from frugal.models import load_card, load_weights
from frugal.models.mini_ar import MiniAR
from frugal.models.mini_maskgit import MiniMaskGIT

KINDS = {"ar": MiniAR, "maskgit": MiniMaskGIT}


def build_generator(shape: dict) -> nn.Module:
    """An untrained generator. Raises ValueError for an unknown kind."""
    if shape["kind"] not in KINDS:
        raise ValueError(f"unknown generator {shape['kind']!r}; known: {', '.join(KINDS)}")
    return KINDS[shape["kind"]](**{name: value for name, value in shape.items() if name != "kind"})


@lru_cache(maxsize=8)
def load_generator(name: str) -> nn.Module:
    """A trained generator. Raises WeightsError for an unknown name."""
    state, card = load_weights(name)
    model = build_generator(card["shape"])
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def tokenizer_of(name: str) -> str:
    """Name of the tokenizer whose codes the generator `name` makes."""
    return load_card(name)["tokenizer"]
