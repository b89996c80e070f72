"""A small flow generator over the 8 x 8 map of latents: what "a better latent for generation" is tested with.

Source: arXiv 2212.09748 (DiT), section 3.2, for the blocks; `models.rectified_flow` for the flow.
Differs: a few 100 k parameters, 9 classes, latents scaled to deviation 1 by numbers measured on the training pictures.
Shapes: B batch, N = 64 latents of dim d.
"""
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from frugal.models.rectified_flow import euler, logit_normal, noised
from frugal.models.trunk import Trunk
from frugal.visual_tokenizers.flextok_nets import sines


class LatentFlow(nn.Module):
    """Velocity of noised latents under a class (9 stands for none)."""

    def __init__(self, dim: int = 8, num_tokens: int = 64, num_classes: int = 9, width: int = 64, num_blocks: int = 3,
                 num_heads: int = 2):
        super().__init__()
        self.num_tokens, self.dim, self.null = num_tokens, dim, num_classes
        self.embed, self.head = nn.Linear(dim, width), nn.Linear(width, dim)
        self.positions = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = nn.Embedding(num_classes + 1, width)
        self.trunk = Trunk(width, num_blocks, num_heads, cond_width=width)
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def fit_scale(self, latents: Float[Tensor, "m n d"]) -> None:
        """Measure mean and deviation of each channel, so that the flow sees numbers of the noise's size."""
        self.shift.copy_(latents.mean((0, 1)))
        self.scale.copy_(latents.std((0, 1)))

    def forward(self, x: Float[Tensor, "b n d"], times: Float[Tensor, "b"], classes: Int[Tensor, "b"]) -> Float[Tensor, "b n d"]:
        """Velocity, in scaled latents."""
        cond = self.time(sines(times)) + self.classes(classes)
        return self.head(self.trunk(self.embed(x) + self.positions, cond=cond)).float()

    def loss(self, latents: Float[Tensor, "b n d"], classes: Int[Tensor, "b"], generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean squared error of the velocity; a tenth of the classes is dropped."""
        x0 = (latents - self.shift) / self.scale
        times = logit_normal(len(x0), generator)
        noise = torch.randn(x0.shape, generator=generator)
        classes = torch.where(torch.rand(len(x0), generator=generator) < 0.1, self.null, classes)
        return (self(noised(x0, noise, times), times, classes) - (noise - x0)).square().mean()

    @torch.no_grad()
    def generate(self, classes: Int[Tensor, "b"], generator: torch.Generator, num_steps: int = 16) -> Float[Tensor, "b n d"]:
        """Latents of new pictures, to be decoded. Raises ValueError for classes out of range."""
        if len(classes) and not (0 <= int(classes.min()) and int(classes.max()) <= self.null):
            raise ValueError(f"classes must be in 0..{self.null} ({self.null}: none), got {int(classes.min())}..{int(classes.max())}")
        noise = torch.randn(len(classes), self.num_tokens, self.dim, generator=generator)
        return euler(lambda x, s: self(x, s, classes), noise, num_steps) * self.scale + self.shift
