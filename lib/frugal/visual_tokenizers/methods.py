"""What every method of the family says of itself, and how each picture tokenizer goes there and back with few tokens.

A tokenizer's `reconstruct(images, num_tokens, seed)` encodes, keeps only the codes, and decodes: no pixel goes around the
codes. The networks are those of the papers' own modules.
"""
from dataclasses import dataclass
from math import log2
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.papers import Paper, paper
from frugal.models import list_weights
from frugal.models.vq_grid import check_images, load_vq_grid


@dataclass(frozen=True)
class Decoded:
    """images: (B, 3, 32, 32) in [0, 1], from the codes alone. bits: size of one picture's codes."""
    images: Float[Tensor, "b 3 px px"]
    bits: float


@dataclass(frozen=True)
class Tokenizer:
    """Base of the picture tokenizers. counts: numbers of tokens it was made for, ascending. weights: names of its
    stored networks, one a count, or one for all ("" where nothing is trained)."""

    kind: ClassVar[str] = "tokenizer"
    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[Paper]
    counts: ClassVar[tuple[int, ...]]
    weights: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def ready(cls) -> bool:
        """Whether its networks are stored."""
        stored = list_weights()
        return all(name in stored for name in cls.weights)

    def check(self, num_tokens: int) -> None:
        """Raises ValueError for a number of tokens that it was not made for."""
        if num_tokens not in self.counts:
            raise ValueError(f"{self.name} was made for {_listed(self.counts)} tokens a picture, not {num_tokens}; take one "
                             "of these, or train another with its recipe")

    def at_most(self, num_tokens: int) -> int | None:
        """Its largest count within a budget; None where it needs more."""
        return max((count for count in self.counts if count <= num_tokens), default=None)

    def reconstruct(self, images: Float[Tensor, "b 3 px px"], num_tokens: int, seed: int = 0) -> Decoded:
        """Pictures through `num_tokens` codes and back. seed: of the noise that flow decoders start from.

        Raises ValueError for pictures of a wrong size or range, or a count that it was not made for.
        """
        check_images(images)
        self.check(num_tokens)
        codes = self.encode(images, num_tokens)
        return Decoded(self.decode(codes, num_tokens, seed).clamp(0, 1), self.bits(num_tokens))

    def encode(self, images: Tensor, num_tokens: int) -> Tensor:
        return self.network(num_tokens).encode(images)

    def decode(self, codes: Tensor, num_tokens: int, seed: int = 0) -> Tensor:
        return self.network(num_tokens).decode(codes)

    def bits(self, num_tokens: int) -> float:
        return float(self.network(num_tokens).bits)

    def network(self, num_tokens: int) -> Any:
        """The trained network for this count, in eval mode."""
        raise NotImplementedError


def _listed(counts: tuple[int, ...]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{', '.join(map(str, counts[:-1]))} or {counts[-1]}"


class Grid(Tokenizer):
    """A code for each square of the picture: coarser squares where fewer tokens are allowed, each size trained on its own."""

    name, label, counts = "vq_grid", "VQ grid", (4, 16, 64)
    weights = ("vq_grid_4", "vq_grid_16", "vq_grid_64")
    summary = "one code a square: 2 x 2, 4 x 4 or 8 x 8 squares"
    paper = Paper.other(arxiv="2012.09841", where="section 3.1", title="VQGAN: Taming Transformers for High-Resolution Image Synthesis")

    def network(self, num_tokens: int) -> Any:
        return load_vq_grid(f"vq_grid_{num_tokens}")


class ResidualGrid(Tokenizer):
    """4 x 4 squares with up to eight residual codes each; any number of levels decodes."""

    name, label, counts = "rvq_grid", "RVQ grid", tuple(16 * level for level in range(1, 9))
    weights = ("rvq_grid",)
    summary = "4 x 4 squares, 1 to 8 residual codes each: the tokenizer under ResGen"
    paper = Paper.other(arxiv="2203.01941", where="section 3.1", title="RQ-VAE: Autoregressive Image Generation using Residual Quantization")

    def network(self, num_tokens: int) -> Any:
        return load_vq_grid("rvq_grid")

    def encode(self, images: Tensor, num_tokens: int) -> Tensor:
        return super().encode(images, num_tokens)[..., :num_tokens // 16]

    def bits(self, num_tokens: int) -> float:
        return num_tokens * log2(self.network(num_tokens).quantizer.codebook_size)


class TiTokTokens(Tokenizer):
    """TiTok at the four lengths that were trained, one network for each length."""

    name, label, counts = "titok", "TiTok", (4, 8, 16, 32)
    weights = ("titok_4", "titok_8", "titok_16", "titok_32")
    summary = "a row of 4 to 32 codes, each of which may speak of the whole picture"
    paper = paper("titok", "section 3.2")

    def network(self, num_tokens: int) -> Any:
        from frugal.visual_tokenizers.titok import load_titok
        return load_titok(num_tokens)


class FlexTokTokens(Tokenizer):
    """FlexTok: one network, any prefix of 1, 2, 4, 8 or 16 codes; a flow draws the picture from noise."""

    name, label, counts = "flextok", "FlexTok", (1, 2, 4, 8, 16)
    weights = ("flextok",)
    summary = "ordered codes, of which the first 1 to 16 already give a picture"
    paper = paper("flextok", "section 3")
    steps: ClassVar[int] = 8                      # of the flow; more sharpen little here and cost in proportion

    def network(self, num_tokens: int) -> Any:
        from frugal.visual_tokenizers.flextok import load_flextok
        return load_flextok()

    def encode(self, images: Tensor, num_tokens: int) -> Tensor:
        return super().encode(images, num_tokens)[:, :num_tokens]

    def decode(self, codes: Tensor, num_tokens: int, seed: int = 0) -> Tensor:
        noise = torch.Generator().manual_seed(seed)
        return self.network(num_tokens).decode(codes, num_steps=self.steps, generator=noise)

    def bits(self, num_tokens: int) -> float:
        network = self.network(num_tokens)
        return num_tokens / network.num_tokens * network.bits


class HieraTokTokens(Tokenizer):
    """HieraTok: 64 tokens of eight real numbers, refined from a pyramid; its bits are those of 16-bit numbers."""

    name, label, counts = "hieratok", "HieraTok", (64,)
    weights = ("hieratok",)
    summary = "64 continuous tokens, made coarse to fine under a scale-causal mask"
    paper = paper("hieratok", "section 3")

    def network(self, num_tokens: int) -> Any:
        from frugal.visual_tokenizers.hieratok import load_hieratok
        return load_hieratok()


class RobusTokens(Tokenizer):
    """The 64-token grid trained with perturbed codes, so that a generator's slips hurt less."""

    name, label, counts = "robustok", "RobusTok", (64,)
    weights = ("robustok_64",)
    summary = "the 8 x 8 grid, trained on codes of which some were swapped for near ones"
    paper = paper("robustok", "section 3")

    def network(self, num_tokens: int) -> Any:
        return load_vq_grid("robustok_64")


class PostTrained(Tokenizer):
    """RobusTok's grid with the decoder that was tuned on generated codes; reconstruction is not what it was tuned for."""

    name, label, counts = "post_training", "Post-trained", (64,)
    weights = ("post_trained_64",)
    summary = "RobusTok with its decoder tuned on what the generator really writes"
    paper = paper("post_training", "section 3")

    def network(self, num_tokens: int) -> Any:
        from frugal.visual_tokenizers.post_training import load_post_trained
        return load_post_trained()


@dataclass(frozen=True)
class Elsewhere:
    """Base of the methods that tokenize no picture: generators over codes, speech, items. See their own modules."""

    kind: ClassVar[str]
    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[Paper]
    counts: ClassVar[tuple[int, ...]] = ()


class ResGenCodes(Elsewhere):
    """ResGen: writes all residual codes of several places at once; measured by `resgen`'s own tables."""

    kind, name, label, paper = "generator", "resgen", "ResGen", paper("resgen", "section 3")
    summary = "a generator whose steps do not grow with the depth of residual codes"


class GenSESpeech(Elsewhere):
    """GenSE: semantic, then acoustic tokens of noisy speech; measured by `gense`'s own tables."""

    kind, name, label, paper = "speech", "gense", "GenSE", paper("gense", "section 3")
    summary = "speech enhancement as language modelling: clean meaning first, sound second"


class SETRecItems(Elsewhere):
    """SETRec: an item as an unordered set of tokens; measured by `setrec`'s own tables."""

    kind, name, label, paper = "recommender", "setrec", "SETRec", paper("setrec", "section 3")
    summary = "recommendation with order-free sets of tokens, all decoded in one forward pass"


TOKENIZERS: tuple[type[Tokenizer], ...] = (Grid, ResidualGrid, TiTokTokens, FlexTokTokens, HieraTokTokens, RobusTokens, PostTrained)
ELSEWHERE: tuple[type[Elsewhere], ...] = (ResGenCodes, GenSESpeech, SETRecItems)
