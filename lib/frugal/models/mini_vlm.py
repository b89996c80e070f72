"""Mini-VLM: mini-CLIP, a projector and a small Llama-style decoder that answers questions about emoji scenes.

Source: arXiv 2304.08485 (LLaVA), section 4.1: patch states of a frozen encoder, projected, stand in front of the text;
arXiv 2310.03744 (LLaVA-1.5-HD) for the tiles: one overview and four tiles, encoded apart.
Differs: the projector is a linear map plus an MLP; row and column embeddings (one table a view) are added to each
visual token before anything can be dropped, so a token that is kept still says where it was; the vocabulary has 132
words; the decoder starts from weights that already link names, patches and places (recipes/mini_vlm_start.py).
Known weakness: it tells none from some, but seldom one from two (the card's count_two_or_more).

What is trained in `packed.py` has the weight layout of `frugal.core.lm.LM`: caches, edits and kernels work on it.
Shapes: B scenes, P views, N_v tokens a view, N = P * N_v visual tokens (overview first, then tiles), d width.
"""
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from frugal.core.lm import LM, LMConfig
from frugal.data.scene_text import VOCAB, SceneVocab
from frugal.data.scenes import to_views
from frugal.models import WeightsError, load_weights
from frugal.models.mini_clip import MiniCLIP, ViewFeatures, load_mini_clip

SHAPE = dict(
    vocab_size=len(VOCAB),
    hidden_size=128,
    num_layers=8,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    intermediate_size=320,
    rope_theta=1e6,
    norm_eps=1e-5,
    max_positions=1024,
    tie_embeddings=True,
)


@dataclass(frozen=True)
class Grid:
    """How visual tokens lie: an overview, then tile_rows x tile_cols tiles, each of patch_rows x patch_cols patches."""
    tile_rows: int = 2
    tile_cols: int = 2
    patch_rows: int = 8
    patch_cols: int = 8

    @property
    def num_views(self) -> int:
        return 1 + self.tile_rows * self.tile_cols

    @property
    def tokens_per_view(self) -> int:
        return self.patch_rows * self.patch_cols

    @property
    def num_tokens(self) -> int:
        return self.num_views * self.tokens_per_view


@dataclass
class VisualTokens:
    """embeds (B, N, d): projected tokens with their place already added; features: the encoder's, each with (B, P) in
    front (cls_attn is (B, P, W, H, N_v)); grid: how they lie."""
    embeds: Tensor
    features: ViewFeatures
    grid: Grid


class Projector(nn.Module):
    """Patch states to decoder width: a linear map (the start of training) plus a two-layer MLP."""

    def __init__(self, clip_width: int, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(clip_width, hidden_size)
        self.up, self.down = nn.Linear(clip_width, hidden_size), nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, patches: Float[Tensor, "*b d_clip"]) -> Float[Tensor, "*b d"]:
        return self.linear(patches) + self.down(F.gelu(self.up(patches)))


class Places(nn.Module):
    """Row and column embeddings, a table of each for every view."""

    def __init__(self, grid: Grid, hidden_size: int):
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(grid.num_views, grid.patch_rows, hidden_size))
        self.cols = nn.Parameter(torch.zeros(grid.num_views, grid.patch_cols, hidden_size))

    def forward(self) -> Float[Tensor, "n d"]:
        """The place of every visual token, (N, d)."""
        return (self.rows[:, :, None] + self.cols[:, None]).flatten(0, 2)


class MiniVLM:
    """An encoder, a projector, places and a decoder. Holds no state between calls; answers are greedy."""

    def __init__(self, clip: MiniCLIP, projector: Projector, places: Places, lm: LM, grid: Grid = Grid()):
        if grid.num_views != 5 or grid.tokens_per_view != clip.num_patches:
            raise ValueError(
                f"{grid} does not fit the views of data.scenes: 2 x 2 tiles and {clip.num_patches} patches a view"
            )
        self.clip, self.projector, self.places, self.lm, self.grid = clip, projector, places, lm, grid
        self.vocab: SceneVocab = lm.tokenizer

    @property
    def num_parameters(self) -> int:
        parts = (self.clip, self.projector, self.places)
        return self.lm.num_parameters + sum(p.numel() for part in parts for p in part.parameters())

    @torch.no_grad()
    def see(self, images: Tensor) -> VisualTokens:
        """Visual tokens of images (B, 3, 128, 128) in [0, 1]. Raises ValueError for another size or mode."""
        views = to_views(images)
        batch, num_views = views.shape[:2]
        seen = self.clip.encode(views.flatten(0, 1))
        shaped = {}
        for field in fields(seen):
            value = getattr(seen, field.name)
            value = value.transpose(0, 1) if field.name == "cls_attn" else value
            shaped[field.name] = value.unflatten(0, (batch, num_views))
        return VisualTokens(
            self.projector(shaped["patches"]).flatten(1, 2) + self.places(), ViewFeatures(**shaped), self.grid
        )

    def prefill(self, embeds: Float[Tensor, "b n d"], lm: LM | None = None):
        """A cache that holds these visual tokens at positions 0..n-1. lm: an edited copy of the decoder. n may be 0 (no
        image)."""
        lm = lm or self.lm
        cache = lm.new_cache(embeds.shape[0])
        if embeds.shape[1]:
            lm.run(None, cache, embeds=embeds, logits=False)
        return cache

    def answer(self, seen, prompt: str | list[int], max_new_tokens: int = 12, lm: LM | None = None) -> list[list[int]]:
        """Greedy token ids of one prompt for every scene, without the end token. seen: a cache (left as it was) or
        embeds.

        Raises ValueError for a word outside the vocabulary, an empty prompt or max_new_tokens below 1.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        lm = lm or self.lm
        ids = self.vocab.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise ValueError("the prompt is empty: ask at least one token, e.g. 'describe :'")
        cache = self.prefill(seen, lm) if torch.is_tensor(seen) else seen.copy()
        batch = seen.shape[0] if torch.is_tensor(seen) else len(seen.num_held())
        text, written = torch.tensor([ids]).expand(batch, -1).contiguous(), []
        for _ in range(max_new_tokens):
            text = lm(text, cache, last_only=True).argmax(-1)                            # (B, 1)
            written.append(text)
            if (torch.cat(written, 1) == self.vocab.eos_id).any(1).all():
                break
        rows = torch.cat(written, 1).tolist()
        return [row[:row.index(self.vocab.eos_id)] if self.vocab.eos_id in row else row for row in rows]

    def logits(
        self, embeds: Float[Tensor, "b n d"], text_ids: Int[Tensor, "b t"], lm: LM | None = None
    ) -> Float[Tensor, "b t v"]:
        """Teacher-forced logits of every text token behind the visual tokens."""
        lm = lm or self.lm
        return lm(text_ids, self.prefill(embeds, lm))


def make_lm(weights: dict[str, Tensor], shape: dict = SHAPE, name: str = "mini-vlm") -> LM:
    """The decoder over weights in LM's layout, with the vocabulary of the scenes."""
    config = LMConfig(**shape, eos_ids=(SceneVocab.eos_id,))
    return LM(config, {key: value.detach().float() for key, value in weights.items()}, SceneVocab(), name=name)


def random_vlm(seed: int = 0, *, num_layers: int = 3, hidden_size: int = 32, num_heads: int = 4, clip_width: int = 32,
               clip_blocks: int = 3) -> MiniVLM:
    """A small model with random weights for tests: right in every shape, wrong in every word."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = MiniCLIP(
            width=clip_width, num_blocks=clip_blocks, num_heads=num_heads, mlp=2 * clip_width, text_width=16
        )
        for block in clip.blocks:
            block.qkv.weight.data *= 3                                                   # attention far from uniform
        grid, projector = Grid(), Projector(clip_width, hidden_size)
        places = Places(grid, hidden_size)
        for table in places.parameters():
            table.data.normal_(0, 0.5)
        shape = SHAPE | dict(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=hidden_size // num_heads,
            intermediate_size=2 * hidden_size,
        )
        weights = {key: 1 + 0.1 * torch.randn(size) if key.endswith("norm") else
                   torch.randn(size) * size[-1] ** -0.5 * (4 if key.endswith("qkv") else 1)
                   for key, size in LMConfig(**shape).weight_shapes().items()}
    for part in (clip, projector, places):
        part.eval().requires_grad_(False)
    return MiniVLM(clip, projector, places, make_lm(weights, shape, "random"), grid)


def build(clip: MiniCLIP, state: dict[str, Tensor], shape: dict = SHAPE) -> MiniVLM:
    """A model from the flat state that is stored: "projector.*", "places.*", and the decoder's weights as "lm.*"."""
    projector, places = Projector(clip.shape["width"], shape["hidden_size"]), Places(Grid(), shape["hidden_size"])
    for prefix, part in (("projector.", projector), ("places.", places)):
        part.load_state_dict(
            {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}
        )
        part.eval().requires_grad_(False)
    lm = make_lm({key.removeprefix("lm."): value for key, value in state.items() if key.startswith("lm.")}, shape)
    return MiniVLM(clip, projector, places, lm)


@lru_cache(maxsize=1)
def load_mini_vlm() -> MiniVLM:
    """The trained model (fp32, shared by all callers). Raises WeightsError when weights are missing, damaged, or when
    the encoder is not the one that the decoder was trained on."""
    state, card = load_weights("mini_vlm")
    encoder = load_weights("mini_clip")[1]
    if card.get("mini_clip_sha256") != encoder["sha256"]:
        raise WeightsError(
            f"mini_vlm was trained on another mini_clip ({str(card.get('mini_clip_sha256'))[:12]}..., found "
            f"{encoder['sha256'][:12]}...); run {card.get('recipe', 'its recipe')} again"
        )
    return build(load_mini_clip(), state, card["shape"])
