"""What FlexTok's figures and claims are drawn from: scores against the number of kept codes, pictures, and time.

Every function returns tidy rows; recipes/record_flextok.py stores them. Units: PSNR in dB, times in ms of processor time
(one thread), sizes in bits. Held-out pictures, except r-eFID, which takes all emoji.
"""
from collections.abc import Callable
from math import log2

import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.image_metrics import copy_rate, kernel_distance, psnr
from frugal.core.measure import counted_flops, cpu_time_s
from frugal.data.emoji_images import load_images, pca_basis
from frugal.explore.pictures.stored import to_text
from frugal.models.emoji_net import load_emoji_net
from frugal.models.emoji_scores import efid, elpips, features
from frugal.models.mini_ar import MiniAR
from frugal.visual_tokenizers.flextok import FlexTok

Row = dict[str, object]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair_row(made: Float[Tensor, "b 3 h h"], real: Float[Tensor, "b 3 h h"]) -> Row:
    """PSNR (dB) and eLPIPS, means over pairs; PSNR's standard error."""
    each = psnr(made, real)
    return {"psnr": float(each.mean()), "psnr_se": float(each.std() / len(each) ** 0.5), "elpips": float(elpips(made, real).mean())}


def all_decoded(decode: Callable[[Tensor, int], Tensor], codes: Tensor, batch: int = 256) -> Tensor:
    """Pictures of all codes in batches; decode(codes, number of the batch)."""
    return torch.cat([decode(part, number) for number, part in enumerate(codes.split(batch))])


def kept_rows(tok: FlexTok, seeds: int = 4, num_steps: int = 20, set_steps: int = 10) -> list[Row]:
    """For every k: a drawn picture, the average of `seeds` of them, and the decoder's one-step mean, against the original.

    seed_std: standard deviation of a pixel over seeds, averaged. refid of drawn pictures: over all emoji, `set_steps` steps.
    """
    images = load_images()
    held = images.pixels[images.held_out_set()]
    codes, every, rows = tok.encode(held), all_decoded(lambda x, _: tok.encode(x), images.pixels), []
    for k in tok.kept:
        head = {"k": k, "bits": k * log2(tok.quantizer.codebook_size)}
        drawn = torch.stack([tok.decode(codes[:, :k], num_steps, seeded(s)) for s in range(seeds)])
        mean = tok.decode_mean(codes[:, :k])
        whole = all_decoded(lambda part, number: tok.decode(part[:, :k], set_steps, seeded(number)), every)
        blurred = all_decoded(lambda part, number: tok.decode_mean(part[:, :k]), every)
        spread = float(drawn.std(0).mean())
        rows += [head | {"what": "drawn", "refid": efid(whole), "seed_std": spread} | pair_row(drawn[0], held),
                 head | {"what": f"average of {seeds}"} | pair_row(drawn.mean(0), held),
                 head | {"what": "one step", "refid": efid(blurred)} | pair_row(mean, held)]
        basis = pca_basis(k)
        rows.append(head | {"what": "PCA, real numbers"} | pair_row(basis.decode(basis.encode(held)).clamp(0, 1), held))
    return rows


def truncated_rows(name: str, tok: torch.nn.Module, decode_latents: Callable[[Tensor], Tensor], kept: tuple[int, ...]) -> list[Row]:
    """A tokenizer without nested dropout, cut after k codes: the mean latent of each dropped place fills its place."""
    images = load_images()
    train, held = images.pixels[images.train()], images.pixels[images.held_out_set()]
    look = tok.quantizer.lookup
    average = look(tok.encode(train)).mean(0)                                              # (N, d)
    latents, rows = look(tok.encode(held)), []
    for k in kept:
        cut = torch.cat([latents[:, :k], average[k:].expand(len(latents), -1, -1)], 1)
        made = decode_latents(cut).clamp(0, 1)
        rows.append({"what": name, "k": k, "bits": k * log2(tok.quantizer.codebook_size)} | pair_row(made, held))
    return rows


def step_rows(tok: FlexTok, counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32), num_images: int = 64) -> list[Row]:
    """Euler steps on x, at every k: one step is a blurred mean, more steps draw detail that need not be right."""
    images = load_images()
    held = images.pixels[images.held_out_set()][:num_images]
    codes = tok.encode(held)
    return [{"k": k, "num_steps": n, "decode_ms": 1e3 * cpu_time_s(lambda: tok.decode(codes[:1, :k], n), 2)}
            | pair_row(tok.decode(codes[:, :k], n, seeded(0)), held) for k in tok.kept for n in counts]


def time_rows(tok: FlexTok, ar: MiniAR, repeats: int = 40) -> list[Row]:
    """Writing k codes stops after k steps; decoding them takes as long for every k. One picture, and counted FLOPs."""
    classes, rows = torch.zeros(1, dtype=torch.long), []
    codes = ar.generate(classes, seeded(0))
    for k in tok.kept:
        def write(k: int = k) -> None:
            ar.generate(classes, seeded(0), length=k)

        def draw(k: int = k) -> None:
            tok.decode(codes[:, :k])

        write(), draw()
        rows.append({"k": k, "write_ms": 1e3 * cpu_time_s(write, repeats), "draw_ms": 1e3 * cpu_time_s(draw, max(1, repeats // 8)),
                     "write_flops": counted_flops(write), "draw_flops": counted_flops(draw)})
    return rows


@torch.no_grad()
def label_rows(tok: FlexTok, writers: dict[str, MiniAR], count: int = 360, num_steps: int = 10) -> list[Row]:
    """Is the drawn picture of the kind that was asked for? By EmojiNet, for writers told the group or the subgroup, with eKID
    and copy rate; and for the picture's own codes, whether its group, subgroup, and itself among all emoji are found again."""
    images, net = load_images(), load_emoji_net()
    generator, rows = seeded(0), []
    picked = torch.randperm(len(images.pixels), generator=generator)[:count]
    labels = {"group": images.groups, "subgroup": images.subgroups}
    real = features(images.pixels)
    own = tok.encode(images.pixels[picked])
    for k in tok.kept:
        for condition, writer in writers.items():
            codes = writer.generate(labels[condition][picked], generator, length=k)
            made = features(tok.decode(codes, num_steps, generator))
            found = net.logits(made)[condition == "subgroup"].argmax(-1)
            rows.append({"k": k, "codes": "written", "condition": condition, "ekid": kernel_distance(real, made),
                         "copies": copy_rate(made, real[images.train()], real[images.held_out_set()]),
                         "accuracy": float((found == labels[condition][picked]).float().mean())})
        seen = features(tok.decode(own[:, :k], num_steps, generator))
        guesses = [logits.argmax(-1) for logits in net.logits(seen)] + [torch.cdist(seen, real).argmin(-1)]
        for condition, guess, right in zip(("group", "subgroup", "name"), guesses, (*labels.values(), torch.arange(len(real)))):
            rows.append({"k": k, "codes": "its own", "condition": condition,
                         "accuracy": float((guess == right[picked]).float().mean())})
    return rows


def picture_rows(tok: FlexTok, names: list[str], seeds: int = 3, num_steps: int = 20) -> list[Row]:
    """Stored pictures of some emoji: the original (k = 0), then for every k the one-step mean (seed -1) and `seeds` draws."""
    images, rows = load_images(), []
    for name in names:
        place = images.names.index(name)
        real = images.pixels[place:place + 1]
        codes = tok.encode(real)
        rows.append({"emoji": name, "k": 0, "seed": -1, "held_out": bool(images.held_out[place]), "png": _stored(real)})
        for k in tok.kept:
            made = {-1: tok.decode_mean(codes[:, :k])} | {s: tok.decode(codes[:, :k], num_steps, seeded(s)) for s in range(seeds)}
            rows += [{"emoji": name, "k": k, "seed": s, "held_out": bool(images.held_out[place]), "png": _stored(picture),
                      "psnr": float(psnr(picture, real))} for s, picture in made.items()]
    return rows


def _stored(picture: Tensor) -> str:
    return to_text(picture[0].permute(1, 2, 0).numpy())
