"""The aligned start of mini-VLM: weights with which a patch already says what it shows and where it stands.

A decoder from random weights stays blind for a long time (620 steps in a trial), because a word's attention is spread
over 320 visual tokens. So the first weights hold what a longer training would find first: orthogonal embeddings of the
names, a projector that maps patches to them, places as the thirds of the canvas, and heads that look for equal content.
All of it is trained on afterwards.
"""
import torch

from frugal.core.lm import LMConfig
from frugal.data.scene_text import FIRST_NAME, NAMES, PLACES, SceneVocab
from frugal.data.scenes import Scene, images_of, make_scene, patch_labels, to_views
from frugal.models.mini_clip import MiniCLIP
from frugal.models.mini_vlm import SHAPE

VOCAB = SceneVocab()
FIRST_SEED = 100_000_000                         # training scenes count from here; the regression takes those before


@torch.no_grad()
def patches_of(clip: MiniCLIP, scenes: list[Scene], views: list[int]) -> torch.Tensor:
    """Patch states (B, P, N_v, d) of the frozen encoder."""
    with torch.autocast("cpu", torch.bfloat16):
        states = clip(to_views(images_of(scenes))[:, views].flatten(0, 1))[0]
    return states.float().unflatten(0, (len(scenes), len(views)))


def ridge(
    clip: MiniCLIP, names: torch.Tensor, flag: torch.Tensor, num_scenes: int = 400
) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear map (weight, bias) from patch states to the embedding of the patch's name plus `flag`, and zero for
    ground."""
    scenes = [make_scene(FIRST_SEED - 1 - i) for i in range(num_scenes)]
    labels = torch.from_numpy(patch_labels(scenes)).flatten()
    states = patches_of(clip, scenes, [0, 1, 2, 3, 4]).flatten(0, 2)
    keep = (labels > 0) | (torch.arange(len(labels)) % 8 == 0)
    states, labels = states[keep].double(), labels[keep]
    targets = torch.cat([torch.zeros(1, names.shape[1]), names + flag])[labels].double()
    mean = states.mean(0)
    inputs = states - mean
    weight = torch.linalg.solve(
        inputs.T @ inputs + 10 * torch.eye(inputs.shape[1]), inputs.T @ (targets - targets.mean(0))
    ).T
    return weight.float(), (targets.mean(0) - weight @ mean).float()


def thirds(view_low: float, patch: float, num: int = 8) -> torch.Tensor:
    """Share of each patch of a view (first px, px a patch on the canvas) in the three thirds of the canvas: (num,
    3)."""
    low = view_low + patch * torch.arange(num)[:, None]
    edges = torch.tensor([0.0, 128 / 3, 256 / 3, 128.0])
    overlap = torch.minimum(low + patch, edges[1:]) - torch.maximum(low, edges[:-1])
    return overlap.clamp(min=0) / patch


def initial(clip: MiniCLIP, seed: int = 0) -> dict[str, torch.Tensor]:
    """The aligned start described above, as one flat dict."""
    g, d, shape = torch.Generator().manual_seed(seed), SHAPE["hidden_size"], SHAPE
    axes = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
    names, spare = 2.0 * axes[:len(NAMES)], axes[len(NAMES):]                              # 104 and 24 directions
    rows, cols, text, image, flag = spare[:3], spare[3:6], spare[6], spare[7], spare[8]
    weights = {}
    for key, size in LMConfig(**shape).weight_shapes().items():
        weights["lm." + key] = (
            torch.ones(size) if key.endswith("norm") else torch.randn(size, generator=g) * size[-1] ** -0.5
        )
    embed = (
        torch.randn(len(weights["lm.embed"]), len(spare) - 9, generator=g) @ spare[9:] * 0.52
    )  # all words of length 2
    embed[FIRST_NAME:] = names
    for index, place in enumerate(PLACES):
        embed[VOCAB.ids[place]] *= 0.7
        embed[VOCAB.ids[place]] += rows[index // 3] + cols[index % 3]
    weights["lm.embed"] = embed + text
    weights["lm.norm"] *= 0.4                                                              # modest logits at the start
    for i in range(shape["num_layers"]):
        _aligned_heads(weights, i, axes, g)
        weights[f"lm.layers.{i}.down"] *= 0.1
    weights["projector.linear.weight"], bias = ridge(clip, names, flag)
    weights["projector.linear.bias"] = bias + image
    weights["projector.up.weight"] = torch.randn(d, clip.shape["width"], generator=g) * d ** -0.5
    weights["projector.up.bias"], weights["projector.down.weight"] = (
        torch.zeros(d),
        torch.randn(d, d, generator=g) * 0.002,
    )
    views = [(0, 0, 16.0), (0, 0, 8.0), (0, 64, 8.0), (64, 0, 8.0), (64, 64, 8.0)]         # top, left, px a patch
    own = 0.3 * spare[9:14, None]                                                          # a direction for every view
    fine = torch.randn(2, 8, len(spare) - 9, generator=g) @ spare[9:] * 0.05
    weights["places.rows"] = torch.stack([thirds(top, px) @ rows for top, _, px in views]) + own + fine[0]
    weights["places.cols"] = torch.stack([thirds(left, px) @ cols for _, left, px in views]) + fine[1]
    return weights


def _aligned_heads(weights: dict, i: int, axes: torch.Tensor, g: torch.Generator) -> None:
    """Queries, keys, values and outputs of one layer: two heads look for the same name in the picture, one looks at the
    word before, one for the same place in the picture. Content sits in the slow rotary pairs, the word before in the
    fast ones."""
    d, dim, fast = axes.shape[0], SHAPE["head_dim"], SHAPE["head_dim"] // 4
    names, spare = axes[:len(NAMES)], axes[len(NAMES):]
    text, image = spare[6], spare[7]
    slow = torch.cat(
        [torch.arange(fast, 2 * fast - 1), torch.arange(3 * fast, 4 * fast - 1)]
    )  # hardly turn in 400 positions

    def some(of: torch.Tensor, number: int) -> torch.Tensor:
        """Orthonormal rows inside the span of `of`."""
        return torch.linalg.qr(torch.randn(len(of), number, generator=g))[0].T @ of

    qkv = weights[f"lm.layers.{i}.qkv"].view(3, SHAPE["num_heads"], dim, d)
    qkv[:2] *= 0.2
    for head, space, gain in ((0, names, 2.5), (1, names, 2.5), (3, spare[:6], 1.0)):
        shared = gain * some(space, min(len(slow), len(space)))
        qkv[0, head, slow[:len(shared)]], qkv[1, head, slow[:len(shared)]] = shared, shared.clone()
        qkv[0, head, 2 * fast - 1], qkv[1, head, 2 * fast - 1] = 1.8 * text, 1.8 * image  # words look at the picture
    near = fast // 2  # pairs that turn fast enough
    turn = SHAPE["rope_theta"] ** (-torch.arange(near).float() / (dim // 2))  # of one step, in radians
    qkv[0, 2, :near], qkv[0, 2, dim // 2 : dim // 2 + near] = (
        1.5 * turn.cos()[:, None] * text,
        -1.5 * turn.sin()[:, None] * text,
    )
    qkv[1, 2, :near] = 1.5 * text
    qkv[2] = torch.stack(
        [torch.cat([spare, some(names, dim - len(spare))]), some(names, dim), some(axes, dim), some(names, dim)]
    )
    weights[f"lm.layers.{i}.o"] = 0.1 * qkv[2].reshape(-1, d).T.contiguous()
