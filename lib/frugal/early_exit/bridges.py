"""Entry bridges: one affine map from the state after the first layer to the state before a later layer.

A model that was never trained to skip breaks when a state jumps over its middle. A bridge is the best linear guess of
what the skipped layers would have made of the state; it looks at one position only, so it can not replace attention.

Source: arXiv 2307.02628 (SkipDecode) skips lower layers and fine-tunes the model for it.
Differs: the model is left as it is; the maps are fitted in closed form, as the ridge lens is, to relative error (rows are
weighted by the size of their target, or a few large states rule the fit).
"""
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.depth import Affine, unit_rms
from frugal.early_exit.lenses import unpacked_maps
from frugal.early_exit.ridge import SINKS, RidgeSums
from frugal.models import load_weights

WARM_UP = 1                                        # layers run before the jump
ENTRIES = (3, 6, 9, 12, 15, 18, 21, 24)            # first layer run after it


def add_bridge_rows(sums: RidgeSums, x: Float[Tensor, "t h"], entered: Float[Tensor, "t h"]) -> None:
    """One window's rows: normalised state after the warm-up layers -> state before the entry layer."""
    x, entered = x[SINKS:], entered[SINKS:]
    sums.add(unit_rms(x), entered, 1 / entered.square().mean(-1))


def fit_bridges(lm, windows, entries=ENTRIES, warm_up: int = WARM_UP, penalty: float = 1e-3) -> dict[int, Affine]:
    """Fits a bridge for each entry layer on windows of token ids."""
    width = lm.config.hidden_size
    sums = {e: RidgeSums(width, width) for e in entries}
    for window in windows:
        hidden = lm.run(torch.tensor([window]), hidden=True, logits=False).hidden
        for e, own in sums.items():
            add_bridge_rows(own, hidden[warm_up][0], hidden[e][0])
    return {e: own.solve(penalty) for e, own in sums.items()}


@lru_cache(maxsize=4)
def load_bridges(name: str = "smollm2_bridges") -> dict[int, Affine]:
    """The stored bridges of SmolLM2: entry layer -> map. Raises WeightsError when they are missing or damaged."""
    return unpacked_maps(load_weights(name)[0])
