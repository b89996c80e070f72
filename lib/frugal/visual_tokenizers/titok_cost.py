"""What TiTok's generator costs at the paper's size, and which part of "410 times faster" is tokens and which is steps.

Source: arXiv 2406.07550 (TiTok), section 4 (177 M generator, 8 steps) and the abstract; DiT-XL/2: arXiv 2212.09748, table 1 (28 layers,
width 1,152) with 250 steps. Guidance doubles every pass in both. The chain goes from DiT to TiTok one change at a time, so each
factor is what its change alone brings, in this order.
Differs: pixel decoders are left out on both sides (TiTok's ViT decoder is a link of its own); both generators are taken as plain
transformers of 12 w^2 weights a layer. The number of steps of TiTok's variant with 128 tokens (64) is recalled, not checked.
"""
from dataclasses import dataclass, replace

import pandas as pd

from frugal.core.roofline import Cost, time

GPU = "A100-80GB"


@dataclass(frozen=True)
class Passes:
    """`passes` forward passes of a transformer over `tokens` tokens. once: weights used once a picture and not once a token
    (DiT's scales and shifts)."""
    name: str
    layers: int
    width: int
    tokens: int
    passes: int
    once: int = 0

    @property
    def weights(self) -> int:
        return 12 * self.layers * self.width ** 2

    def cost(self, batch: int = 1) -> Cost:
        """Of one pass: products with all weights and full attention; weights read once, in 16 bits."""
        products = 2 * (self.weights * self.tokens + self.once) + 4 * self.layers * self.width * self.tokens ** 2
        return Cost(flops=batch * products, bytes=2 * (self.weights + self.once))

    def flops(self) -> int:
        return self.passes * self.cost().flops

    def seconds(self, batch: int = 1, on: str = GPU) -> float:
        """Least seconds a picture, by roofline."""
        return self.passes * time(self.cost(batch), on).lower_s / batch


GUIDED = 2                                                         # passes a step: with the class and without
DIT = Passes("DiT-XL/2, 250 steps", 28, 1152, 1024, 250 * GUIDED, 28 * 6 * 1152 ** 2)
MASKED = Passes("177 M generator", 24, 768, 1024, 8 * GUIDED)
DECODER = Passes("TiTok's ViT-L decoder", 24, 1024, 1024 + 64, 1)
DECODER_B = Passes("TiTok's ViT-B decoder", 12, 768, 1024 + 128, 1)


def chain() -> pd.DataFrame:
    """From 250-step DiT at 512 px to TiTok with 64 tokens, one change at a time: TFLOPs a picture, and the factor of each
    change in FLOPs and in least time at batch 1 and 64."""
    steps = replace(DIT, name="8 steps in place of 250", passes=MASKED.passes)
    small = replace(MASKED, name="177 M generator in place of 675 M")
    tokens = replace(MASKED, name="64 tokens in place of 1,024", tokens=64)
    rows, before = [], None
    for link, parts in [(DIT, [DIT]), (steps, [steps]), (small, [small]), (tokens, [tokens]),
                        (replace(DECODER, name="and TiTok's own decoder"), [tokens, DECODER])]:
        now = {"flops": sum(part.flops() for part in parts), **{f"s_{batch}": sum(part.seconds(batch) for part in parts) for batch in (1, 64)}}
        rows.append({"change": link.name, "tflops": now["flops"] / 1e12, "ms_1": 1000 * now["s_1"], "ms_64": 1000 * now["s_64"],
                     **{f"{name}_factor": (before[name] / now[name] if before else 1.0) for name in now}})
        before = now
    return pd.DataFrame(rows)


def speedup(tokens: int, steps: int, decoder: Passes, batch: int = 64) -> float:
    """DiT's least time a picture over TiTok's, decoder included."""
    own = replace(MASKED, tokens=tokens, passes=steps * GUIDED)
    return DIT.seconds(batch) / (own.seconds(batch) + decoder.seconds(batch))


def lengths(counts: tuple[int, ...] = (256, 128, 64, 32), batches: tuple[int, ...] = (1, 64)) -> pd.DataFrame:
    """The 177 M generator at 256 px: least milliseconds a picture for each number of tokens, and against 256 tokens."""
    rows = []
    for batch in batches:
        full = replace(MASKED, tokens=256).seconds(batch)
        for count in counts:
            own = replace(MASKED, tokens=count)
            rows.append({"tokens": count, "batch": batch, "gflops": own.flops() / 1e9, "ms": 1000 * own.seconds(batch),
                         "speedup": full / own.seconds(batch)})
    return pd.DataFrame(rows)
