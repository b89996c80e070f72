"""Rectified flow: straight lines from a picture to noise, and the solver that walks them back.

At time s a sample is x_s = s * noise + (1 - s) * x0, so its velocity is v = noise - x0 for every s. A network learns v;
generation starts at pure noise (s = 1) and takes Euler steps down to s = 0.

Source: arXiv 2209.03003 (rectified flow), equation 1; times sigmoid(N(0, 1)) from arXiv 2403.03206 (SD3), section 3.1;
the normalised form of guidance arXiv 2410.02416 (APG), section 4, with the settings of FlexTok (the plain form, arXiv
2207.12598, is `core.sampling.guided`).
Shapes: x (B, ...), times (B,). Guidance scale 1 is the conditional velocity alone.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
LEAST_TIME = 0.02  # below it, x0 is as good as seen; dividing by s would only magnify rounding


def _wide(times: Tensor, like: Tensor) -> Tensor:
    return times.reshape(-1, *[1] * (like.ndim - 1))


def noised(x0: Float[Tensor, "b *d"], noise: Float[Tensor, "b *d"], times: Float[Tensor, "b"]) -> Float[Tensor, "b *d"]:
    """The point of each line at its time: x0 at 0, the noise at 1."""
    s = _wide(times, x0)
    return s * noise + (1 - s) * x0


def velocity_to(x0: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], times: Float[Tensor, "b"]) -> Float[Tensor, "b *d"]:
    """The velocity of the line that runs through x at its time and ends in x0: what a guess of x0 says about v."""
    return (x - x0) / _wide(times.clamp(min=LEAST_TIME), x)


def logit_normal(count: int, generator: torch.Generator | None = None, mean: float = 0.0, std: float = 1.0
                 ) -> Float[Tensor, "b"]:
    """Times for training, sigmoid(N(mean, std)): the middle of the line, where guessing is hardest, comes most."""
    return (torch.randn(count, generator=generator) * std + mean).sigmoid()


def euler(velocity: Velocity, noise: Float[Tensor, "b *d"], num_steps: int,
          on_step: Callable[[int, Tensor], None] | None = None) -> Float[Tensor, "b *d"]:
    """Samples: num_steps equal steps from s = 1 to 0, each x <- x - velocity(x, s) / num_steps.

    velocity: takes x (B, ...) and times (B,). on_step: called with the number of steps done and x after each.
    Raises ValueError for fewer than one step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    x = noise
    for done in range(num_steps):
        x = x - velocity(x, x.new_full((len(x),), 1 - done / num_steps)) / num_steps
        if on_step is not None:
            on_step(done + 1, x)
    return x


@dataclass
class NormalisedGuidance:
    """Guidance whose push cannot over-saturate (APG). One object a sampling run: it carries the momentum.

    scale: as in `core.sampling.guided`. momentum: share of the last difference that is added (negative damps). max_norm: longest
    difference of a sample. parallel: share kept of the part along the conditional velocity, which only scales it up.
    With momentum 0, an infinite max_norm and parallel 1 it is `guided`.
    """

    scale: float
    momentum: float = -0.5
    max_norm: float = 2.5
    parallel: float = 0.0
    running: Tensor | None = field(default=None, repr=False)

    def __call__(self, conditional: Float[Tensor, "b *d"], unconditional: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """The guided velocity; moves the momentum on."""
        push = conditional - unconditional
        push = push if self.running is None else push + self.momentum * self.running
        self.running = push
        flat, along = push.flatten(1), conditional.flatten(1)
        flat = flat * (self.max_norm / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        along = along / along.norm(dim=1, keepdim=True).clamp(min=1e-12)
        shadow = (flat * along).sum(1, keepdim=True) * along
        flat = flat - (1 - self.parallel) * shadow
        return conditional + (self.scale - 1) * flat.reshape(push.shape)
