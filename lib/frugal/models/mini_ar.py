"""A small autoregressive generator of code sequences under a class: a decoder-only transformer with a key-value cache.

Source: arXiv 2406.06525 (LlamaGen), section 3, for plain next-code prediction behind a class token and guidance on logits
with a class that is dropped in training.
Differs: learned positions and the shared pre-norm trunk instead of a Llama block; a few 100 k parameters.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from frugal.core.sampling import check_filters, draw, guided
from frugal.models.quantizers import check_codes
from frugal.models.trunk import Trunk


def check_classes(classes: Tensor, num_classes: int) -> None:
    """Raises ValueError for classes outside 0..num_classes, where num_classes stands for "no class"."""
    if classes.ndim != 1 or classes.is_floating_point():
        raise ValueError(f"classes must be (B,) integers, got {tuple(classes.shape)} {classes.dtype}")
    if classes.numel() and not (0 <= int(classes.min()) and int(classes.max()) <= num_classes):
        raise ValueError(
            f"classes must be in 0..{num_classes} ({num_classes} means no class), got {int(classes.min())}.."
            f"{int(classes.max())}"
        )


def drop_classes(classes: Int[Tensor, "b"], null: int, share: float, generator: torch.Generator | None) -> Tensor:
    """Classes, a share of which became `null`: the model learns to do without, which guidance needs."""
    gone = torch.rand(len(classes), generator=generator) < share
    return torch.where(gone.to(classes.device), null, classes)


class CodeGenerator(nn.Module):
    """The tables, trunk and head of a generator of code sequences under a class; subclasses say in which order codes come.

    vocab_size: number of codes. length: codes of a picture. num_classes: classes 0..num_classes-1; `null` = num_classes is
    the class that stands for none. class_dropout: share of training examples that lose their class.
    """

    EXTRA_INPUTS = 0  # inputs that are no codes, numbered behind them

    def __init__(
        self,
        vocab_size: int,
        length: int,
        num_classes: int = 9,
        width: int = 128,
        num_blocks: int = 4,
        num_heads: int = 4,
        class_dropout: float = 0.1,
    ):
        super().__init__()
        if vocab_size < 1 or length < 1 or num_classes < 1:
            raise ValueError(f"need at least one code, place and class, got {vocab_size}, {length}, {num_classes}")
        self.vocab_size, self.length, self.null, self.class_dropout = vocab_size, length, num_classes, class_dropout
        self.classes = nn.Embedding(num_classes + 1, width)
        self.codes = nn.Embedding(vocab_size + self.EXTRA_INPUTS, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.trunk = Trunk(width, num_blocks, num_heads)
        self.head = nn.Linear(width, vocab_size)
        for table in (self.classes, self.codes):
            nn.init.normal_(table.weight, std=0.02)


class MiniAR(CodeGenerator):
    """p(codes | class), one code after the other. Sizes: see `CodeGenerator`."""

    def forward(self, codes: Int[Tensor, "b t"], classes: Int[Tensor, "b"]) -> Float[Tensor, "b t1 v"]:
        """Logits of code t given the class and the codes before it, for t = 0..T (T+1 rows, or T when T is the length)."""
        self._check(codes, classes)
        seen = codes[:, : self.length - 1]
        x = torch.cat([self.classes(classes)[:, None], self.codes(seen)], 1) + self.positions[: seen.shape[1] + 1]
        return self.head(self.trunk(x, causal=True))

    def loss(
        self, codes: Int[Tensor, "b t"], classes: Int[Tensor, "b"], generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """Mean nats a code. Classes are dropped in training mode only."""
        if self.training:
            classes = drop_classes(classes, self.null, self.class_dropout, generator)
        logits = self(codes, classes)[:, : codes.shape[1]]
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())

    @torch.no_grad()
    def generate(
        self,
        classes: Int[Tensor, "b"],
        generator: torch.Generator | None = None,
        temperature: float | int = 1.0,
        top_k: int = 0,
        top_p: float | int = 1.0,
        guidance: float | int = 1.0,
        length: int | None = None,
        forced: tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]] | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Int[Tensor, "b n"]:
        """(B, length) codes, one forward pass over one new token a code, with the keys of the earlier ones kept.

        temperature 0: the likeliest code; top_k 0 and top_p 1: no filter. guidance: scale of l_u + s (l_c - l_u); every
        value but 1 doubles the batch. length: stop after so many codes. forced: (codes, mask); where the mask is true the
        given code is emitted, and the model goes on from it. on_step(i, codes so far (B, i + 1)) after every code.
        Raises ValueError for classes, lengths or forced codes out of range.
        """
        length = self.length if length is None else length
        check_filters(temperature, top_k, top_p)
        self._check_request(classes, length, forced)
        doubled = guidance != 1
        inputs = self.classes(torch.cat([classes, torch.full_like(classes, self.null)]) if doubled else classes)
        cache = self.trunk.new_cache(len(inputs), reserve=length)
        codes = torch.empty(len(classes), length, dtype=torch.long, device=classes.device)
        for step in range(length):
            logits = self.head(self.trunk((inputs + self.positions[step])[:, None], cache=cache)[:, 0]).float()
            if doubled:
                logits = guided(*logits.chunk(2), guidance)
            new = draw(logits, generator, temperature, top_k, top_p)
            if forced is not None:
                new = torch.where(forced[1][:, step], forced[0][:, step], new)
            codes[:, step] = new
            if on_step is not None:
                on_step(step, codes[:, : step + 1].clone())
            inputs = self.codes(torch.cat([new, new]) if doubled else new)
        return codes

    def _check(self, codes: Tensor, classes: Tensor) -> None:
        check_codes(codes, self.vocab_size)
        check_classes(classes, self.null)
        if codes.shape[1] > self.length:
            raise ValueError(f"{codes.shape[1]} codes, but this model was made for at most {self.length}; cut them")

    def _check_request(self, classes: Tensor, length: int, forced: tuple[Tensor, Tensor] | None) -> None:
        check_classes(classes, self.null)
        if not 1 <= length <= self.length:
            raise ValueError(f"length must be in 1..{self.length}, got {length}")
        if forced is not None:
            codes, mask = forced
            if codes.shape != mask.shape or codes.shape[0] != len(classes) or codes.shape[1] < length:
                raise ValueError(
                    f"forced needs codes and mask of ({len(classes)}, {length}), got {tuple(codes.shape)} and "
                    f"{tuple(mask.shape)}"
                )
            check_codes(codes[mask], self.vocab_size)
