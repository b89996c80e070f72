"""EmojiNet: the small convolutional network whose features all picture distances of the laboratory are taken in.

Source: the roles are those of VGG in arXiv 1801.03924 (LPIPS) and of Inception in arXiv 1706.08500 (FID).
Differs: 0.29 M parameters over 32 px emoji, trained on their 99 subgroups and 9 groups and on telling pictures apart
(InfoNCE of two augmented views), so its distances are called eLPIPS, eFID and eKID, never by the names of the originals.
GroupNorm, so that the features of a picture do not depend on its batch. Weights: recipes/train_emoji_net.py.
Shapes: B pictures; stages (B, 24, 16, 16), (B, 48, 8, 8), (B, 72, 4, 4), (B, 96, 2, 2); features (B, 64).
"""
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from frugal.data.emoji_images import PX
from frugal.models import load_weights

SHAPE = dict(channels=[24, 48, 72, 96], num_features=64, num_groups=9, num_subgroups=99)


class Stage(nn.Module):
    """Half the side, then one residual block (3x3, then 1x1)."""

    def __init__(self, came: int, channels: int):
        super().__init__()
        self.down, self.down_norm = nn.Conv2d(came, channels, 3, 2, 1, bias=False), nn.GroupNorm(8, channels)
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.GroupNorm(8, channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.down_norm(self.down(x)))
        return x + self.mix(F.silu(self.norm(self.conv(x))))


class EmojiNet(nn.Module):
    """Four stages, the mean over the picture, and a linear map to the features that both classifiers read."""

    def __init__(self, channels: list[int], num_features: int = 64, num_groups: int = 9, num_subgroups: int = 99):
        super().__init__()
        self.parts = nn.ModuleList(Stage(came, channels[i]) for i, came in enumerate([3, *channels[:-1]]))
        self.to_features = nn.Linear(channels[-1], num_features)
        self.to_groups, self.to_subgroups = nn.Linear(num_features, num_groups), nn.Linear(num_features, num_subgroups)

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Maps after each of the four stages, for `core.image_metrics.perceptual_distance`.

        images: in [0, 1], 32 px a side or a whole multiple (averaged down). Raises ValueError for another size.
        """
        height, width = images.shape[-2:]
        if height != width or height < PX or height % PX:
            raise ValueError(f"pictures must be {PX} px a side or a whole multiple, got {height} x {width}; "
                             "data.emoji_images.read_image cuts and scales any picture")
        x = (F.avg_pool2d(images, height // PX) - 0.5) * 2
        found = []
        for part in self.parts:
            x = part(x)
            found.append(x)
        return found

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """What eFID, eKID and the copy rate measure in; over all emoji its mean is 0 and its mean variance 1."""
        return self.to_features(F.silu(self.stages(images)[-1]).mean((2, 3)))

    def logits(self, features: Float[Tensor, "b f"]) -> tuple[Tensor, Tensor]:
        """(groups (B, 9), subgroups (B, 99)) from features, numbered as in `data.emoji_images`."""
        return self.to_groups(features), self.to_subgroups(features)


@lru_cache(maxsize=1)
def load_emoji_net() -> EmojiNet:
    """The trained network, frozen, in eval mode; gradients still reach the pictures. Raises WeightsError when its weights
    are missing or damaged."""
    weights, card = load_weights("emoji_net")
    net = EmojiNet(**card["shape"])
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
