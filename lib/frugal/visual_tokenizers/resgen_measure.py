"""What ResGen's rows are made of: time and counted work of five samplers over depth, scores of what they make, and a projection.

Timing needs no trained weights: the work of a sampler does not depend on what it draws. The projection is a roofline of one
forward pass after the other at the size of the paper's model, batch 1, with the two passes that guidance takes.
"""

import pandas as pd
import torch
from torch import Tensor, nn

from frugal.core.devices import device
from frugal.core.measure import compare, counted_flops
from frugal.core.roofline import Cost, time
from frugal.visual_tokenizers.resgen import ResGen
from frugal.visual_tokenizers.resgen_baselines import FlatMaskGIT, RQTransformer, SoftmaxHeads, by_level
from frugal.visual_tokenizers.resgen_sampling import generate

SIZES = {"length": 16, "width": 96, "num_blocks": 3, "num_heads": 4}
SAMPLERS = ("RQ-Transformer", "flat MaskGIT", "level by level", "softmax heads", "ResGen")
STEPS, DEPTHS = 8, (2, 4, 8, 16)
# ResGen's settings: least g-eFID at 8 steps with other random numbers than the rows shown (table resgen_noise).
CHOSEN = {"temperature": 0.8, "confidence": 8.0}
LARGE = {"params": 574e6, "length": 64, "depth": 16, "steps": 64}  # the paper's larger model; our choice of steps
DEPTH_SHARE = 4 / 30  # of an RQ-Transformer's weights, in the loop over levels: 4 of 30 layers


def random_codebooks(depth: int, size: int = 256, dim: int = 8) -> Tensor:
    """Code vectors whose length halves with every two levels, for timing."""
    return (
        torch.randn(depth, size, dim, generator=torch.Generator().manual_seed(0))
        * 0.7 ** torch.arange(depth)[:, None, None]
    )


def untrained(depth: int) -> dict[str, nn.Module]:
    """One model of each kind with random weights, by the name of its sampler."""
    torch.manual_seed(0)
    books = random_codebooks(depth)
    heads = SoftmaxHeads(books, **SIZES)
    made = {
        "RQ-Transformer": RQTransformer(books, **SIZES),
        "flat MaskGIT": FlatMaskGIT(books, **SIZES),
        "level by level": heads,
        "softmax heads": heads,
        "ResGen": ResGen(books, **SIZES),
    }
    return {name: model.eval().requires_grad_(False) for name, model in made.items()}


def sample(
    name: str,
    model: nn.Module,
    classes: Tensor,
    generator: torch.Generator | None = None,
    num_steps: int = STEPS,
    **options,
) -> Tensor:
    """(B, L, D) codes from the named sampler. ValueError for an unknown name."""
    if name == "RQ-Transformer":
        return model.generate(classes, generator, **options)
    if name == "flat MaskGIT":
        return model.generate(classes, generator, num_steps, **options).unflatten(1, (-1, model.depth))
    if name == "level by level":
        return by_level(model, classes, generator, num_steps, **options)
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; there are: {', '.join(SAMPLERS)}")
    own = {"propose": SoftmaxHeads.propose} if isinstance(model, SoftmaxHeads) else {}
    return generate(model, classes, generator, num_steps, **own, **options)


def forward_passes(name: str, depth: int, num_steps: int = STEPS, length: int = SIZES["length"]) -> int:
    """How often the sampler runs a trunk (the RQ-Transformer: either of its two)."""
    return {"RQ-Transformer": length * (1 + depth), "level by level": depth * num_steps}.get(name, num_steps)


def speed_rows(depths=DEPTHS, repeats: int = 9, batch: int = 1) -> pd.DataFrame:
    """Milliseconds (median and quartiles), CPU ms, FLOPs and forward passes an image, all samplers in turn in one process."""
    classes, runs, rows = torch.zeros(batch, dtype=torch.long), {}, []
    for depth in depths:
        for name, model in untrained(depth).items():
            runs[name, depth] = lambda n=name, m=model: sample(n, m, classes, torch.Generator().manual_seed(0))
    found = compare({f"{name} {depth}": run for (name, depth), run in runs.items()}, repeats)
    for (name, depth), row in zip(runs, found.itertuples()):
        times = {f"{part}_ms": 1000 * getattr(row, f"{part}_s") / batch for part in ("median", "low", "high", "cpu")}
        rows.append(
            {
                "sampler": name,
                "depth": depth,
                "batch": batch,
                **times,
                "passes": forward_passes(name, depth),
                "flops": counted_flops(runs[name, depth]) // batch,
            }
        )
    return pd.DataFrame(rows)


@torch.no_grad()
def pictures(
    tokenizer, name: str, model: nn.Module, classes: Tensor, seed: int = 0, batch: int = 374, **options
) -> Tensor:
    """One decoded picture a class, in batches."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [tokenizer.decode(sample(name, model, part, generator, **options)) for part in classes.split(batch)]
    )


@torch.no_grad()
def depth_rows(tokenizer) -> pd.DataFrame:
    """What the tokenizer keeps of the held-out pictures with its first 1..D levels; PCA of as many numbers beside it."""
    from frugal.data.emoji_images import load_images, pca_basis
    from frugal.models.emoji_scores import pair_scores

    images = load_images()
    held = images.pixels[images.held_out_set()]
    codes, rows = tokenizer.encode(held), []
    for depth in range(1, codes.shape[-1] + 1):
        bits = depth * tokenizer.num_tokens * 8
        rows.append(
            {
                "what": "residual codes",
                "depth": depth,
                "bits": bits,
                **pair_scores(tokenizer.decode(codes[..., :depth]), held),
            }
        )
    for components in (16, 64, 128):
        basis = pca_basis(components)
        rows.append(
            {
                "what": f"PCA-{components}",
                "depth": 0,
                "bits": 32 * components,
                **pair_scores(basis.decode(basis.encode(held)).clamp(0, 1), held),
            }
        )
    return pd.DataFrame(rows)


# -- at the paper's size -------------------------------------------------------------------------------------------


def pass_cost(params: float, tokens: int, batch: int = 2) -> Cost:
    """One forward pass of `batch` sequences of `tokens` tokens: all weights read once, in 16 bits. Attention is left out
    (below 2 % of the products at 64 tokens)."""
    return Cost(flops=2 * params * tokens * batch, bytes=2 * params)


def projected_costs(
    depth: int, params: float = LARGE["params"], length: int = LARGE["length"], steps: int = LARGE["steps"]
) -> dict[str, list[tuple[Cost, int]]]:
    """The forward passes of each sampler as (cost of one, how many)."""
    inner = DEPTH_SHARE * params
    return {
        "RQ-Transformer": [(pass_cost(params - inner, 1), length), (pass_cost(inner, 1), length * depth)],
        "flat MaskGIT": [(pass_cost(params, length * depth), steps)],
        "level by level": [(pass_cost(params, length), steps * depth)],
        "ResGen": [(pass_cost(params, length), steps)],
    }


def projection_rows(depths=(2, 4, 8, 16), on: str = "A100-40GB") -> pd.DataFrame:
    """Bounds of the milliseconds an image takes, by sampler and depth."""
    rows = []
    for depth in depths:
        for name, parts in projected_costs(depth).items():
            spans = [(time(cost, device(on)), count) for cost, count in parts]
            rows.append(
                {
                    "sampler": name,
                    "depth": depth,
                    "device": on,
                    "passes": sum(count for _, count in parts),
                    "ms": 1000 * sum(span.lower_s * count for span, count in spans),
                    "upper_ms": 1000 * sum(span.upper_s * count for span, count in spans),
                }
            )
    return pd.DataFrame(rows)


def spread_of_depth(rows: pd.DataFrame, name: str, column: str, depths: tuple[int, int]) -> float:
    """How many times larger `column` is at the second depth than at the first."""
    own = rows[rows["sampler"] == name].set_index("depth")[column]
    return float(own[depths[1]] / own[depths[0]])
