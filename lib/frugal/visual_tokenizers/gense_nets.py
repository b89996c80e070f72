"""The two token languages of GenSE and the small convolutional network that both are made of.

SemanticTokenizer: 64 clusters of features that know the phoneme, 25/s: what is said, hardly by whom.
AcousticCodec: one quantizer with 512 codes, 25/s, and a decoder to log-mel frames: how it sounds.

Source: arXiv 2502.02942, sections 3.1 (XLSR features, k-means with 1,024 clusters) and 3.2 (SimCodec: one quantizer).
Differs: no self-supervised model fits a laptop, so the features come from a network that was trained on the synthesizer's own
phoneme labels, under noise; 64 and 512 codes for 1,024 and 8,192; the acoustic tokens run at 25/s, the semantic rate, for the
paper's 50/s (half as many tokens to learn to generate); no two-stage codebook; the decoder gives log-mel frames.
Shapes: B clips, F frames (50/s), T = F / 2 tokens.
"""
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from frugal.core.papers import paper
from frugal.data.formant_speech import UNITS
from frugal.models import load_weights
from frugal.models.quantizers import VectorQuantizer, check_codes
from frugal.visual_tokenizers.gense_audio import BINS, check_audio, log_mel


class Convs(nn.Module):
    """1-D convolutions over time with residual sums: (B, F, channels in) -> (B, F / stride, channels out)."""

    def __init__(self, num_in: int, width: int, num_out: int, dilations: tuple[int, ...] = (1, 2, 1), stride: int = 1, up: int = 1):
        super().__init__()
        self.first = nn.Conv1d(num_in, width, 2 * stride if stride > 1 else 5, stride, stride // 2 if stride > 1 else 2)
        self.ins = nn.ModuleList(nn.Conv1d(width, width, 3, 1, d, d) for d in dilations)
        self.outs = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations)
        self.up = nn.ConvTranspose1d(width, width, 2 * up, up, up // 2) if up > 1 else None
        self.last = nn.Conv1d(width, num_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x.transpose(1, 2)))
        for inner, outer in zip(self.ins, self.outs):
            x = x + outer(F.gelu(inner(_unit(x))))
        if self.up is not None:
            x = F.gelu(self.up(_unit(x)))
        return self.last(_unit(x)).transpose(1, 2)


def _unit(x: Tensor) -> Tensor:
    """Channels of every moment scaled to a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt()


class SemanticTokenizer(nn.Module):
    """Tokens of what is said. The codebook is fitted by k-means after training (`recipes/train_gense.py`)."""

    paper, label = paper("gense"), "semantic tokens"

    def __init__(self, width: int = 80, dim: int = 24, codebook_size: int = 64):
        super().__init__()
        self.shape = {"width": width, "dim": dim, "codebook_size": codebook_size}
        self.net = Convs(BINS, width, dim, (1, 2, 3, 1), stride=2)
        self.head = nn.Linear(dim, len(UNITS))
        self.register_buffer("codebook", torch.randn(codebook_size, dim))

    def features(self, mel: Float[Tensor, "b f 40"]) -> Float[Tensor, "b t d"]:
        """Features of length 1, two frames each. The clip's mean spectrum is taken off first: it is mostly the voice."""
        return F.normalize(self.net(mel - mel.mean(1, keepdim=True)), dim=-1)

    def logits(self, mel: Float[Tensor, "b f 40"]) -> Float[Tensor, "b t units"]:
        """Phoneme logits: what training asks for; no token depends on them."""
        return self.head(12 * self.features(mel))

    def nearest(self, features: Float[Tensor, "*b d"]) -> Int[Tensor, "*b"]:
        """The cluster whose mean is nearest; ties go to the smaller number."""
        return (self.codebook.square().sum(-1) - 2 * features @ self.codebook.T).argmin(-1)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Int[Tensor, "b t"]:
        """Semantic tokens of audio (n,) or (B, n). ValueError as `check_audio` says."""
        return self.nearest(self.features(log_mel(check_audio(audio))))


class AcousticCodec(nn.Module):
    """Tokens of how it sounds, and back to log-mel frames."""

    paper, label = paper("gense"), "acoustic codec"

    def __init__(self, width: int = 72, dim: int = 16, codebook_size: int = 512):
        super().__init__()
        self.shape = {"width": width, "dim": dim, "codebook_size": codebook_size}
        self.encoder = Convs(BINS, width, dim, (1, 2, 1), stride=2)
        self.quantizer = VectorQuantizer(codebook_size, dim)
        self.decoder = Convs(dim, width, BINS, (1, 2, 1), up=2)

    def forward(self, mel: Float[Tensor, "b f 40"]) -> tuple[Tensor, Tensor, Tensor]:
        """(decoded frames, codes, loss of the quantizer)."""
        found = self.quantizer(self.encoder(mel))
        return self.decoder(found.latents), found.codes, found.loss

    @torch.no_grad()
    def tokens(self, mel: Float[Tensor, "b f 40"]) -> Int[Tensor, "b t"]:
        """Codes of log-mel frames."""
        return self.quantizer.nearest(self.quantizer.prepared(self.encoder(mel)))

    def encode(self, audio: Tensor) -> Int[Tensor, "b t"]:
        """Acoustic tokens of audio (n,) or (B, n). ValueError as `check_audio` says."""
        return self.tokens(log_mel(check_audio(audio)))

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "..."]) -> Float[Tensor, "b f 40"]:
        """Log-mel frames, two a token. Raises ValueError for codes out of range, or without a batch axis."""
        check_codes(codes, self.quantizer.codebook_size)
        if codes.ndim != 2 or not codes.numel():
            raise ValueError(f"codes of shape {tuple(codes.shape)}: give (clips, tokens), at least one of each")
        return self.decoder(self.quantizer.lookup(codes))


def load_net(name: str, cls: type[nn.Module]) -> nn.Module:
    """A trained network of this paper in eval mode, built from the shape on its card. Raises WeightsError."""
    weights, card = load_weights(name)
    net = cls(**card["shape"])
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)
