"""Mini-CLIP: a four-block vision transformer over 64 x 64 views of emoji scenes; its CLS token learns to name them.

Source: arXiv 2103.00020 (CLIP) for the layout, arXiv 2303.15343 (SigLIP), equation 1, for the loss on the CLS token.
Differs: the text side is a table of 104 name vectors, one a class; a view has several positives; a convolution stem in
place of the patch embedding (arXiv 2106.14881); a second, dense loss names the object behind every patch (arXiv
2104.10858, token labelling), because patches of a small encoder trained on CLS alone say little.
Weights: recipes/train_mini_clip.py.
Shapes: V views, W blocks, H heads, N_v patches a view (raster order), d width.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from frugal.data.scenes import NAMES, VIEW
from frugal.models import load_weights

SHAPE = dict(width=128, num_blocks=4, num_heads=4, mlp=512, patches=8, text_width=128)


@dataclass
class ViewFeatures:
    """What the encoder says of each view; every tensor has the views in front.

    patches (V, N_v, d): final patch states, what the projector gets. cls (V, d_text): joint embedding of the CLS token.
    cls_attn (W, V, H, N_v): softmax row of the CLS query over the patches, every block; its own column is left out and
    the row is not renormalised. patch_attn (V, H, N_v, N_v): the same of the patch queries, first block. keys (V, N_v,
    d) and cls_query (V, d): of the last block, heads side by side.
    """
    patches: Tensor
    cls: Tensor
    cls_attn: Tensor
    patch_attn: Tensor
    keys: Tensor
    cls_query: Tensor


class Block(nn.Module):
    """Pre-norm attention and MLP over all tokens of a view."""

    def __init__(self, width: int, num_heads: int, mlp: int):
        super().__init__()
        self.num_heads = num_heads
        self.attn_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return self.finish(x, F.scaled_dot_product_attention(q, k, v))

    def heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values, stacked: (3, V, H, T, D)."""
        return self.qkv(self.attn_norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Residual sums after attention has mixed the values (V, H, T, D)."""
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class MiniCLIP(nn.Module):
    """The encoder, its table of names, and the classifier of patches that the dense loss trained."""

    def __init__(self, width: int = 128, num_blocks: int = 4, num_heads: int = 4, mlp: int = 512, patches: int = 8,
                 text_width: int = 128):
        super().__init__()
        if patches != VIEW // 8:
            raise ValueError(f"the stem halves {VIEW} px three times, so patches must be {VIEW // 8}, got {patches}")
        self.shape = dict(
            width=width, num_blocks=num_blocks, num_heads=num_heads, mlp=mlp, patches=patches, text_width=text_width
        )
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, 2, 1),
        )
        self.cls_token = nn.Parameter(torch.randn(width) * 0.02)
        self.position = nn.Parameter(torch.randn(patches * patches, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.to_text = nn.Linear(width, text_width, bias=False)
        self.names = nn.Parameter(torch.randn(len(NAMES), text_width) * text_width ** -0.5)
        self.scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-3.0))
        self.classify = nn.Linear(width, len(NAMES) + 1)                                # row 0: ground

    @property
    def num_patches(self) -> int:
        return self.position.shape[0]

    def tokens(self, views: Tensor) -> Tensor:
        """Stem, positions and CLS in front: (V, 1 + N_v, d). Raises ValueError for views of another size or mode."""
        if views.ndim != 4 or tuple(views.shape[1:]) != (3, VIEW, VIEW) or not views.is_floating_point():
            raise ValueError(f"views must be floats (views, 3, {VIEW}, {VIEW}) in [0, 1], got {tuple(views.shape)} of "
                             f"{views.dtype}; data.scenes.to_views cuts them from an image")
        x = self.stem((views - 0.5) * 4).flatten(2).transpose(1, 2) + self.position
        return torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1)

    def forward(self, views: Float[Tensor, "v 3 64 64"]) -> tuple[Tensor, Tensor]:
        """(patch states (V, N_v, d), CLS embedding (V, d_text)) with gradients: what training needs."""
        x = self.tokens(views)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 1:], self.to_text(x[:, 0])

    @torch.no_grad()
    def encode(self, views: Float[Tensor, "v 3 64 64"]) -> ViewFeatures:
        """The same states, with the attention maps, keys and CLS query that token droppers look at."""
        x, cls_attn, patch_attn = self.tokens(views), [], None
        for block in self.blocks:
            q, k, v = block.heads(x)
            attn = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)           # (V, H, 1 + N_v, 1 + N_v)
            cls_attn.append(attn[:, :, 0, 1:])
            patch_attn = attn[:, :, 1:, 1:] if patch_attn is None else patch_attn
            x = block.finish(x, attn @ v)
        x = self.norm(x)
        keys, queries = k.transpose(1, 2).flatten(2), q.transpose(1, 2).flatten(2)  # (V, 1 + N_v, d)
        return ViewFeatures(
            x[:, 1:], self.to_text(x[:, 0]), torch.stack(cls_attn), patch_attn, keys[:, 1:], queries[:, 0]
        )

    def name_logits(self, cls: Float[Tensor, "v d_text"]) -> Float[Tensor, "v names"]:
        """Sigmoid logit of every name being in the view (SigLIP: scale * cosine + bias)."""
        cosine = F.normalize(cls.float(), dim=-1) @ F.normalize(self.names, dim=-1).T
        return self.scale.exp() * cosine + self.bias

    def patch_logits(self, patches: Float[Tensor, "v n d"]) -> Float[Tensor, "v n classes"]:
        """Logits of what each patch shows: 0 ground, i + 1 the i-th name."""
        return self.classify(patches)


def load_mini_clip() -> MiniCLIP:
    """The trained encoder, in eval mode. Raises WeightsError when its weights are missing or damaged."""
    weights, card = load_weights("mini_clip")
    clip = MiniCLIP(**card["shape"])
    clip.load_state_dict(weights)
    return clip.eval().requires_grad_(False)
