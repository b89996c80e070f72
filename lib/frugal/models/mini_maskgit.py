"""A small masked generator of codes under a class: all places are guessed at once, the surest guesses stay, a few rounds long.

Source: arXiv 2202.04200 (MaskGIT), section 3; training weights, schedule, guidance and confidence as in the code that TiTok
(arXiv 2406.07550) was released with.
Differs: exactly as many codes stay masked as the schedule says, also where confidences tie; the class is a prefix token.
Traps that cost quality and raise no error: confidence is the raw logit of the drawn code, not its probability after the
temperature; guidance is l_c + g (l_c - l_u), so 0 means none; places known before the step can never be masked again.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from frugal.core.sampling import check_filters, guided
from frugal.models.mini_ar import CodeGenerator, check_classes, drop_classes
from frugal.models.quantizers import check_codes


def arccos_share(at: float | int) -> float:
    """Share of codes still masked when a share `at` of the steps is done; from 1 down to 0, slowly at first."""
    return math.acos(at) / (math.pi / 2)


def masked_counts(length: int, num_steps: int) -> list[int]:
    """Codes masked after each step; at least one code is revealed a step, and the last one reveals all that are left.

    >>> masked_counts(16, 4)
    [13, 10, 7, 0]
    """
    counts, masked = [], length
    for step in range(num_steps - 1):
        masked = max(1, min(masked - 1, math.floor(length * arccos_share((step + 1) / num_steps))))
        counts.append(masked)
    return [*counts, 0]


def training_mask(batch: int, length: int, generator: torch.Generator | None = None) -> Bool[Tensor, "b n"]:
    """True where a code is hidden: a share arccos(u) / (pi/2) of each row, u uniform, at least one place, drawn evenly."""
    share = torch.rand(batch, generator=generator).arccos() / (math.pi / 2)
    counts = (share * length).round().clamp(min=1)
    ranks = torch.rand(batch, length, generator=generator).argsort(-1).argsort(-1)
    return ranks < counts[:, None]


def gumbel(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | None = None) -> Tensor:
    """Standard Gumbel noise: argmax of logits plus this is a draw from their softmax."""
    uniform = torch.rand(shape, generator=generator, device=device).clamp(1e-20, 1 - 1e-7)
    return -(-uniform.log()).log()


def still_masked(
    confidence: Float[Tensor, "b n"], masked: Bool[Tensor, "b n"], count: int, noise: Float[Tensor, "b n"]
) -> Bool[Tensor, "b n"]:
    """The `count` least confident of the masked places; confidence plus noise decides, known places are out of it."""
    score = torch.where(masked, confidence + noise, float("inf"))
    place = score.argsort(dim=-1, stable=True)[:, :count]
    return torch.zeros_like(masked).scatter(1, place, True)


class MiniMaskGIT(CodeGenerator):
    """p(hidden codes | visible codes, class), each hidden code on its own.

    Sizes: see `CodeGenerator`; `mask` = vocab_size is the input that stands for a hidden code.
    """

    SMOOTHING, KNOWN_WEIGHT = 0.1, 0.1
    EXTRA_INPUTS = 1

    @property
    def mask(self) -> int:
        return self.vocab_size

    def embed(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n w"]:
        """Inputs of codes, `mask` among them, without positions."""
        return self.codes(codes)

    def read(self, states: Float[Tensor, "b n w"]) -> Float[Tensor, "b n v"]:
        """Logits over the codes."""
        return self.head(states)

    def forward(self, codes: Int[Tensor, "b n"], classes: Int[Tensor, "b"]) -> Float[Tensor, "b n v"]:
        """Logits of the code at every place; hidden places hold `mask`."""
        check_codes(codes, self.vocab_size + 1)
        check_classes(classes, self.null)
        if codes.shape[1] != self.length:
            raise ValueError(f"{codes.shape[1]} codes, but this model was made for {self.length}")
        x = torch.cat([self.classes(classes)[:, None], self.embed(codes) + self.positions], 1)
        return self.read(self.trunk(x)[:, 1:])

    def loss(
        self, codes: Int[Tensor, "b n"], classes: Int[Tensor, "b"], generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """Cross entropy with smoothed labels; a visible place counts a tenth. Classes are dropped in training mode only."""
        check_codes(codes, self.vocab_size)
        if self.training:
            classes = drop_classes(classes, self.null, self.class_dropout, generator)
        masked = training_mask(len(codes), self.length, generator)
        logits = self(codes.masked_fill(masked, self.mask), classes).float()
        nats = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none", label_smoothing=self.SMOOTHING)
        weight = torch.where(masked, 1.0, self.KNOWN_WEIGHT)
        return (nats * weight).sum() / weight.sum()

    @torch.no_grad()
    def generate(
        self,
        classes: Int[Tensor, "b"],
        generator: torch.Generator | None = None,
        num_steps: int = 8,
        temperature: float | int = 1.0,
        guidance: float | int = 0.0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Int[Tensor, "b n"]:
        """(B, length) codes in `num_steps` forward passes over all places.

        temperature: of the first step, for drawing codes and for choosing which stay; it falls to 0 in a line.
        guidance: g of l_c + g (l_c - l_u), 0 for none (MiniAR's scale is 1 + g). on_step(s, codes) after every step, where
        hidden places hold `mask`. Raises ValueError for settings or classes out of range.
        """
        check_filters(temperature)
        check_classes(classes, self.null)
        if not 1 <= num_steps <= self.length:
            raise ValueError(
                f"num_steps must be in 1..{self.length} (a step reveals at least one code), got {num_steps}"
            )
        codes = torch.full((len(classes), self.length), self.mask, device=classes.device)
        for step, count in enumerate(masked_counts(self.length, num_steps)):
            tau = temperature * (1 - (step + 1) / num_steps)
            logits = self._guided_logits(codes, classes, guidance)
            drawn = (logits + tau * gumbel(logits.shape, generator, logits.device)).argmax(-1)
            confidence = logits.gather(-1, drawn[..., None])[..., 0]
            masked = codes == self.mask
            noise = tau * gumbel(confidence.shape, generator, logits.device)
            hidden = still_masked(confidence, masked, count, noise)
            codes = torch.where(masked, drawn, codes).masked_fill(hidden, self.mask)
            if on_step is not None:
                on_step(step, codes.clone())
        return codes

    def _guided_logits(self, codes: Tensor, classes: Tensor, guidance: float) -> Tensor:
        if guidance == 0:
            return self(codes, classes).float()
        both = self(torch.cat([codes, codes]), torch.cat([classes, torch.full_like(classes, self.null)])).float()
        return guided(*both.chunk(2), 1 + guidance)
