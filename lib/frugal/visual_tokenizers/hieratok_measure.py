"""What HieraTok's figures are drawn from, besides the training runs: cost of the pyramid, pictures of its coarse scales.

Tidy rows; recipes/record_hieratok.py stores them with the rows that recipes/train_hieratok.py wrote.
"""
import torch

from frugal.core.image_metrics import psnr
from frugal.core.measure import counted_flops, cpu_time_s
from frugal.data.emoji_images import load_images
from frugal.explore.pictures.stored import to_text
from frugal.visual_tokenizers.hieratok import SHAPE, HieraTok

Row = dict[str, object]
SCALE_LISTS = ([8], [4, 8], [2, 4, 8], [1, 2, 4, 8])


@torch.no_grad()
def cost_rows(repeats: int = 5) -> list[Row]:
    """Tokens in the pyramid blocks, counted FLOPs and processor time (ms, one thread) of one picture there and back, by
    scale list. The exported latent is 64 tokens for all."""
    image, rows = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    for scales in SCALE_LISTS:
        tok = HieraTok(**(SHAPE | {"scales": scales})).eval().requires_grad_(False)

        def there_and_back(tok: HieraTok = tok) -> None:
            tok.decode(tok.encode(image))

        there_and_back()
        rows.append({"scales": ", ".join(map(str, scales)), "tokens": sum(s * s for s in scales), "exported": tok.num_tokens,
                     "mflops": counted_flops(there_and_back) / 1e6, "ms": 1e3 * cpu_time_s(there_and_back, repeats)})
    return rows


def coarse_rows(tok: HieraTok, names: list[str]) -> list[Row]:
    """Stored pictures: the original (scale 0), what each coarse scale of the decoder says, and the finest (scale 8). PSNR
    against the original averaged down to the same size."""
    images, rows = load_images(), []
    for name in names:
        place = images.names.index(name)
        real = images.pixels[place:place + 1]
        latents = tok.encode(real)
        made = dict(zip((s for s in (1, 2, 4)), tok.decode_coarse(latents))) | {8: tok.decode(latents)}
        head = {"emoji": name, "held_out": bool(images.held_out[place])}
        rows.append(head | {"scale": 0, "png": _stored(real)})
        for scale, picture in made.items():
            small = torch.nn.functional.adaptive_avg_pool2d(real, picture.shape[-1])
            rows.append(head | {"scale": scale, "png": _stored(picture), "psnr": float(psnr(picture, small))})
    return rows


def _stored(picture: torch.Tensor) -> str:
    return to_text(picture[0].permute(1, 2, 0).numpy())
