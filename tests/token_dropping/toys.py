"""Random visual tokens for the tests: right in every shape, about nothing."""
import torch

from frugal.models.mini_clip import ViewFeatures
from frugal.models.mini_vlm import Grid, VisualTokens

GRID = Grid(2, 2, 8, 8)
LAYERS, HEADS = 3, 2


def random_tokens(seed: int = 0, batch: int = 2, grid: Grid = GRID, width: int = 16) -> VisualTokens:
    """Tokens of `batch` scenes with softmax attention rows that leave a little to the CLS token itself."""
    g = torch.Generator().manual_seed(seed)
    views, size = grid.num_views, grid.tokens_per_view

    def draw(*shape):
        return torch.randn(batch, views, *shape, generator=g)

    attn = (2 * draw(LAYERS, HEADS, size + 1)).softmax(-1)[..., 1:]
    features = ViewFeatures(patches=draw(size, width), cls=draw(8), cls_attn=attn,
                            patch_attn=draw(HEADS, size, size).softmax(-1), keys=draw(size, 12), cls_query=draw(12))
    return VisualTokens(torch.randn(batch, grid.num_tokens, width, generator=g), features, grid)


def with_attention(tokens: VisualTokens, layer: int, attn: torch.Tensor) -> VisualTokens:
    """The same tokens with all heads' CLS attention of one layer replaced by `attn` (B, P, v)."""
    tokens.features.cls_attn[:, :, layer] = attn[:, :, None]
    return tokens
