"""GenSE: speech enhancement as two language models over tokens, first what is said, then how it sounds.

N2S (noisy to semantic) continues `[noisy semantic | BOS]` with the clean semantic tokens. S2S (semantic to speech) continues
the token chain `[noisy semantic | clean semantic | BOS | noisy acoustic]` with the clean acoustic tokens, so that what is
said comes from the first stage and the voice from the noisy prompt. Position ids restart: target i of N2S shares the
position of source i; the noisy acoustic prompt starts again at 0, and what S2S generates at GENERATED. Only tokens of the
asked kind may be drawn.

Source: arXiv 2502.02942, sections 3.3 (both stages, token chain prompting) and the released inference code (positions, masks).
Differs: 4 blocks for 12, width 64 for 1,024, 64 + 512 codes for 1,024 + 8,192, clips of 1.28 s; position tables start as
sinusoids; decoding keeps a KV cache, where the release runs the whole sequence again for every token (`cached=False` does).
Shapes: B clips, T tokens a kind (25/s); a chain holds L = 4T + 1 tokens at most.
"""
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from frugal.core.papers import paper
from frugal.models.quantizers import check_codes
from frugal.models.trunk import Trunk
from frugal.visual_tokenizers.gense_audio import check_audio, log_mel
from frugal.visual_tokenizers.gense_nets import AcousticCodec, SemanticTokenizer, load_net

__all__ = ["BOS", "CHUNK", "GENERATED", "PARTS", "Chain", "ChainDecoder", "Enhanced", "GenSE", "chain_of", "load_gense"]

BOS, SPECIAL = 0, 3                              # ids 0-2 are special, as in the release; then semantic, then acoustic
GENERATED = 128                                  # first position of what S2S generates (1,000 in the release)
CHUNK = 32                                       # tokens of a clip that the decoders were trained on: 1.28 s
PARTS = {                                        # prompt of each variant: kinds in their order
    "n2s": ("noisy_semantic", "bos"),
    "s2s": ("noisy_semantic", "clean_semantic", "bos", "noisy_acoustic"),
    "no_prompt": ("noisy_semantic", "clean_semantic", "bos"),
    "one_stage": ("noisy_acoustic", "bos"),
}
TARGET = {"n2s": "semantic", "s2s": "acoustic", "no_prompt": "acoustic", "one_stage": "acoustic"}


@dataclass(frozen=True)
class Chain:
    """A prompt, or a prompt with its targets: ids (B, L), positions (L,), is_target (L,) true for what is to be generated."""
    ids: Int[Tensor, "b l"]
    positions: Int[Tensor, "l"]
    is_target: Bool[Tensor, "l"]


def chain_of(variant: str, parts: dict[str, Tensor], target: Tensor | None = None, num_semantic: int = 64) -> Chain:
    """The token chain of a variant of PARTS, with its position ids.

    parts: codes (B, T) by kind, from 0 in each codebook. target: clean codes to learn from, placed behind the prompt.
    Semantic parts run on from one to the next, with BOS behind them; the noisy acoustic part starts again at 0 and so does
    the target, behind GENERATED for S2S and its variant without the acoustic prompt. Raises ValueError for a part that is
    missing or for an unknown variant.
    """
    if variant not in PARTS:
        raise ValueError(f"variant {variant!r}: allowed are {', '.join(PARTS)}")
    missing = [kind for kind in PARTS[variant] if kind != "bos" and kind not in parts]
    if missing:
        raise ValueError(f"{variant} needs {', '.join(missing)}; given: {', '.join(parts) or 'nothing'}")
    offset = {"semantic": SPECIAL, "acoustic": SPECIAL + num_semantic}
    first = next(iter(parts.values()))
    ids, positions, at = [], [], 0
    for kind in PARTS[variant]:
        if kind == "bos":
            codes = torch.full((len(first), 1), BOS)
        else:
            codes = parts[kind] + offset[kind.split("_")[1]]
            at = 0 if kind == "noisy_acoustic" else at
        ids.append(codes)
        positions.append(torch.arange(at, at + codes.shape[1]))
        at += codes.shape[1]
    length = sum(part.shape[1] for part in ids)
    if target is not None:
        ids.append(target + offset[TARGET[variant]])
        positions.append(target_positions(variant, target.shape[1]))
    ids, positions = torch.cat(ids, 1), torch.cat(positions)
    return Chain(ids, positions, torch.arange(len(positions)) >= length)


def target_positions(variant: str, count: int) -> Int[Tensor, "t"]:
    """Position ids of the generated tokens."""
    return torch.arange(count) + (GENERATED if variant in ("s2s", "no_prompt") else 0)


class ChainDecoder(nn.Module):
    """A decoder over chains of one variant: token + position, a causal trunk, and the token table again as the head."""

    paper = paper("gense")

    def __init__(self, variant: str, width: int = 64, num_blocks: int = 4, num_heads: int = 4, num_semantic: int = 64,
                 num_acoustic: int = 512):
        super().__init__()
        if variant not in PARTS:
            raise ValueError(f"variant {variant!r}: allowed are {', '.join(PARTS)}")
        self.shape = {"variant": variant, "width": width, "num_blocks": num_blocks, "num_heads": num_heads,
                      "num_semantic": num_semantic, "num_acoustic": num_acoustic}
        self.variant, self.num_semantic = variant, num_semantic
        self.sizes = {"semantic": num_semantic, "acoustic": num_acoustic if variant != "n2s" else 0}
        self.tokens = nn.Embedding(SPECIAL + sum(self.sizes.values()), width)
        nn.init.normal_(self.tokens.weight, std=0.5)
        self.positions = nn.Parameter(sinusoids(GENERATED + 2 * CHUNK, width))
        self.trunk = Trunk(width, num_blocks, num_heads, 3 * width)
        self.bias = nn.Parameter(torch.zeros(self.tokens.num_embeddings))

    @property
    def allowed(self) -> tuple[int, int]:
        """First id that may be generated, and the one behind the last."""
        first = SPECIAL + (self.num_semantic if TARGET[self.variant] == "acoustic" else 0)
        return first, first + self.sizes[TARGET[self.variant]]

    def embed(self, ids: Int[Tensor, "b l"], positions: Int[Tensor, "l"]) -> Float[Tensor, "b l w"]:
        return self.tokens(ids) + self.positions[positions]

    def head(self, states: Float[Tensor, "b l w"]) -> Float[Tensor, "b l v"]:
        """Logits over the whole vocabulary; ids that may not be generated get -inf: zero probability."""
        logits = states @ self.tokens.weight.T * self.tokens.embedding_dim ** -0.5 + self.bias
        first, last = self.allowed
        ids = torch.arange(logits.shape[-1])
        return logits.masked_fill((ids < first) | (ids >= last), float("-inf"))

    def forward(self, ids: Int[Tensor, "b l"], positions: Int[Tensor, "l"]) -> Float[Tensor, "b l v"]:
        """Masked logits at every place of a chain, all at once."""
        return self.head(self.trunk(self.embed(ids, positions), causal=True))

    def loss(self, chain: Chain) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of the target tokens alone, and the share of them that is the likeliest."""
        states = self.trunk(self.embed(chain.ids, chain.positions)[:, :-1], causal=True)
        asked = chain.is_target[1:]                                   # the token before a target predicts it
        logits, want = self.head(states[:, asked]).float(), chain.ids[:, 1:][:, asked]
        return F.cross_entropy(logits.flatten(0, 1), want.flatten()), (logits.argmax(-1) == want).float().mean()

    @torch.no_grad()
    def generate(self, parts: dict[str, Tensor], temperature: float = 1.0, generator: torch.Generator | None = None,
                 cached: bool = True) -> Int[Tensor, "b t"]:
        """Clean codes (B, T), one for each token of the source, drawn from the masked softmax.

        temperature: 1 draws plainly, as the release does; 0 takes the likeliest. cached: keep keys and values; without it
        the whole chain is computed again for every token. Raises ValueError as `chain_of`, for parts of different lengths
        or of more than CHUNK tokens, for codes out of range and for a negative temperature.
        """
        count = self._check(parts, temperature)
        chain, target = chain_of(self.variant, parts, num_semantic=self.num_semantic), target_positions(self.variant, count)
        ids, positions, made = chain.ids, chain.positions, []
        cache = self.trunk.new_cache(len(ids), reserve=ids.shape[1] + count) if cached else None
        for step in range(count):
            if cached:
                logits = self.head(self.trunk(self.embed(ids, positions), cache=cache)[:, -1:])[:, 0]
            else:
                logits = self(ids, positions)[:, -1]
            drawn = pick(logits, temperature, generator)[:, None]
            made.append(drawn)
            ids = drawn if cached else torch.cat([ids, drawn], 1)
            positions = target[step:step + 1] if cached else torch.cat([positions, target[step:step + 1]])
        return torch.cat(made, 1) - self.allowed[0]

    def _check(self, parts: dict[str, Tensor], temperature: float) -> int:
        kinds = [kind for kind in PARTS[self.variant] if kind != "bos"]
        for kind in set(kinds) & set(parts):
            check_codes(parts[kind], self.sizes[kind.split("_")[1]])
        lengths = {kind: parts[kind].shape[1] for kind in kinds if kind in parts}
        if lengths and (len(set(lengths.values())) > 1 or not 1 <= max(lengths.values()) <= CHUNK):
            raise ValueError(f"parts of {lengths} tokens: give the same number of each, 1 to {CHUNK}; cut longer audio into pieces")
        if not temperature >= 0:
            raise ValueError(f"temperature {temperature} must be 0 (likeliest) or more; the release draws at 1")
        return max(lengths.values(), default=0)


def pick(logits: Float[Tensor, "b v"], temperature: float, generator: torch.Generator | None = None) -> Int[Tensor, "b"]:
    """One id a row."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


def sinusoids(count: int, width: int) -> Float[Tensor, "count width"]:
    """Position table to start from; what lies behind GENERATED starts as a copy of the first rows, with a mark added."""
    place = torch.arange(count)
    place = torch.where(place >= GENERATED, place - GENERATED, place)[:, None].float()
    speed = 400.0 ** (-torch.arange(width // 2) / (width // 2))
    table = torch.cat([(place * speed).sin(), (place * speed).cos()], 1)
    mark = torch.randn(width, generator=torch.Generator().manual_seed(0)) * 0.5
    return 0.5 * (table + torch.where(torch.arange(count) >= GENERATED, 1.0, 0.0)[:, None] * mark)


@dataclass(frozen=True)
class Enhanced:
    """What came out, and every token on the way. mel: (B, F, 40) standard log-mel frames; codes: (B, T) by kind."""
    mel: Float[Tensor, "b f 40"]
    codes: dict[str, Int[Tensor, "b t"]]


class GenSE:
    """Both tokenizers and both stages. hierarchy: through semantic tokens; False is the one-stage baseline. prompt: show S2S
    the noisy acoustic tokens; False is the baseline that has to guess the voice."""

    paper, label, kind = paper("gense"), "GenSE", "speech"

    def __init__(self, semantic: SemanticTokenizer, acoustic: AcousticCodec, decoders: dict[str, ChainDecoder]):
        self.semantic, self.acoustic, self.decoders = semantic, acoustic, decoders

    def enhance(self, audio: Tensor, hierarchy: bool = True, prompt: bool = True, temperature: float = 1.0, seed: int = 0,
                cached: bool = True) -> Enhanced:
        """Enhanced speech of noisy audio (n,) or (B, n) at 8 kHz, in pieces of 1.28 s, the only length the decoders know;
        tokens of shorter audio are repeated up to it. ValueError as `check_audio`."""
        mel, generator = log_mel(check_audio(audio)), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            noisy = {"noisy_semantic": self.semantic.nearest(self.semantic.features(mel)), "noisy_acoustic": self.acoustic.tokens(mel)}
        count, pieces = mel.shape[1] // 2, []
        noisy = {kind: codes.repeat(1, -(-CHUNK // count))[:, :max(CHUNK, count)] for kind, codes in noisy.items()}
        for start in range(0, count, CHUNK):
            at = min(start, max(CHUNK, count) - CHUNK)                # the last piece overlaps, and only its new part is kept
            piece = self._piece({kind: codes[:, at:at + CHUNK] for kind, codes in noisy.items()}, hierarchy, prompt, temperature, generator, cached)
            pieces.append({kind: codes[:, start - at:][:, :count - start] for kind, codes in piece.items()})
        codes = {kind: torch.cat([piece[kind] for piece in pieces], 1) for kind in pieces[0]}
        return Enhanced(self.acoustic.decode(codes["clean_acoustic"]), codes)

    def _piece(self, parts, hierarchy, prompt, temperature, generator, cached) -> dict[str, Tensor]:
        if not hierarchy:
            made = self.decoders["one_stage"].generate(parts, temperature, generator, cached)
            return {**parts, "clean_acoustic": made}
        parts = {**parts, "clean_semantic": self.decoders["n2s"].generate(parts, temperature, generator, cached)}
        second = self.decoders["s2s" if prompt else "no_prompt"]
        return {**parts, "clean_acoustic": second.generate(parts, temperature, generator, cached)}


@lru_cache(maxsize=1)
def load_gense() -> GenSE:
    """All trained networks of this paper. Raises WeightsError when weights are missing or damaged."""
    decoders = {variant: load_net(f"gense_{variant}", ChainDecoder) for variant in PARTS}
    return GenSE(load_net("gense_semantic", SemanticTokenizer), load_net("gense_acoustic", AcousticCodec), decoders)
