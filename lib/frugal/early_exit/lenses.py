"""Lenses: what a state in the middle of the stack would say if it left now.

The logit lens hands the state to the model's own head. The ridge lens first applies an affine map, fitted in closed form
to turn the normalised state into the normalised last state: one pass over text, one solve a layer, no gradients.

Source: logit lens: nostalgebraist, "interpreting GPT: the logit lens" (2020); a linear short cut to the last layer:
arXiv 2303.09435, section 3; the affine form: arXiv 2303.08112 (Tuned Lens), section 3.
Differs: closed form with normalised states on both sides, the first four positions of each window left out of the fit
(attention sinks, hundreds of times larger); the tuned lens is trained by gradients against the final distribution.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.depth import Affine, Stack, checked_exit, unit_rms
from frugal.early_exit.ridge import SINKS, RidgeSums
from frugal.models import load_weights, save_weights

EXITS = (21, 22, 24, 26, 27, 28)        # of SmolLM2's 30 layers; before the 21st nothing can be read (see the lens table)


class LogitLens:
    """The model's own norm and head on the state after any layer. No training; poor until the last layers."""

    name = "logit_lens"

    def logits(self, stack: Stack, x: Float[Tensor, "b t h"], exit_layer: int) -> Float[Tensor, "b t v"]:
        """What the state after `exit_layer` layers says, charged to the stack."""
        checked_exit(exit_layer, stack.num_layers)
        return stack.logits(x)


@dataclass(frozen=True)
class RidgeLens:
    """An affine map to the last state for some exits, then the model's head; at the last layer, the head alone.

    maps: layers run -> map from the normalised state to the normalised last state.
    """
    maps: dict[int, Affine] = field(repr=False)
    name = "ridge_lens"

    def logits(self, stack: Stack, x: Float[Tensor, "b t h"], exit_layer: int) -> Float[Tensor, "b t v"]:
        """What the state after `exit_layer` layers says, charged to the stack. ValueError for an exit without a map."""
        if checked_exit(exit_layer, stack.num_layers) == stack.num_layers:
            return stack.logits(x)
        if exit_layer not in self.maps:
            raise ValueError(f"no map for an exit after {exit_layer} layers; there are {sorted(self.maps)}")
        return stack.logits(stack.map(x, self.maps[exit_layer]), normalise=False)


def fit_ridge_lens(lm, windows: Sequence[list[int]], exits: Sequence[int], penalty: float = 1e-3) -> RidgeLens:
    """Fits the maps on windows of token ids, each run on its own from position 0."""
    width = lm.config.hidden_size
    sums = {e: RidgeSums(width, width) for e in exits}
    for window in windows:
        hidden = lm.run(torch.tensor([window]), hidden=True, logits=False).hidden
        for e, own in sums.items():
            add_lens_rows(own, hidden[e][0], hidden[-1][0])
    return RidgeLens({e: own.solve(penalty) for e, own in sums.items()})


def add_lens_rows(sums: RidgeSums, x: Float[Tensor, "t h"], last: Float[Tensor, "t h"]) -> None:
    """One window's rows: normalised state -> normalised last state, sinks left out."""
    sums.add(unit_rms(x[SINKS:]), unit_rms(last[SINKS:]))


# -- stored maps --------------------------------------------------------------------------------------------------

def packed_maps(maps: dict[int, Affine]) -> dict[str, Tensor]:
    """Maps as named tensors: 8-bit rows with one scale a row: half the size of fp16, for about a point of agreement."""
    state = {}
    for key, affine in maps.items():
        scale = affine.weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        state |= {f"{key}.codes": (affine.weight / scale).round().to(torch.int8), f"{key}.scale": scale[:, 0],
                  f"{key}.bias": affine.bias}
    return state


def unpacked_maps(state: dict[str, Tensor]) -> dict[int, Affine]:
    """The reverse of `packed_maps`."""
    keys = sorted({int(name.split(".")[0]) for name in state})
    return {key: Affine((state[f"{key}.codes"].float() * state[f"{key}.scale"][:, None]).contiguous(), state[f"{key}.bias"])
            for key in keys}


def save_maps(name: str, maps: dict[int, Affine], card: dict):
    """Stores maps in the package's weights, with their card."""
    return save_weights(name, packed_maps(maps), card)


@lru_cache(maxsize=4)
def load_ridge_lens(name: str = "smollm2_lenses") -> RidgeLens:
    """The stored ridge lens of SmolLM2. Raises WeightsError when it is missing or damaged."""
    return RidgeLens(unpacked_maps(load_weights(name)[0]))
