"""Train HieraTok and what it is compared with, and on each latent the same small flow generator.

    python recipes/train_hieratok.py --work FOLDER --publish [--steps 400] [--flow-steps 400] [--seeds 2]
        [--variants hieratok single full shuffled]

One thread, about ten CPU-minutes for four variants and two seeds. Writes FOLDER/rows.json (read by record_hieratok.py; a
later run with other variants, e.g. `no_coarse` without the coarse losses, adds its rows) and publishes the weights "hieratok"
and "hieratok_single" of seed 0.
"""
import json

import torch
import torch.nn.functional as F
from torch import Tensor
from training import Plan, fit, halved, options, publish

from frugal.core.image_metrics import copy_rate, kernel_distance, psnr
from frugal.data.emoji import PIXELS_SHA256
from frugal.data.emoji_images import EmojiImages, augment, load_images
from frugal.models.emoji_net import load_emoji_net
from frugal.models.emoji_scores import efid, elpips, features, real_features
from frugal.visual_tokenizers.hieratok import PATCH, SHAPE, HieraTok
from frugal.visual_tokenizers.hieratok_flow import LatentFlow

VARIANTS = {"hieratok": {}, "single": {"scales": [8]}, "full": {"full": True}, "shuffled": {"shuffled": True},
            "no_coarse": {}, "encoder": {"decoder_scales": [8]}, "decoder": {"encoder_scales": [8]},
            "two": {"scales": [4, 8]}, "three": {"scales": [2, 4, 8]}}
PUBLISHED = {"hieratok": "hieratok", "single": "hieratok_single"}
BATCH, FLOW_BATCH, LOSSES = 32, 64, dict(l1=1.0, mse=2.0, kl=1e-4, coarse=0.25)
SAMPLES, SAMPLE_STEPS = 450, 10


def start_linear(model: HieraTok, pixels: Tensor) -> None:
    """Each patch's first principal components, scaled to deviation 1, and back."""
    cut = F.pixel_unshuffle(pixels * 2 - 1, PATCH).flatten(2).transpose(1, 2).flatten(0, 1)
    average = cut.mean(0)
    values, vectors = torch.linalg.eigh((cut - average).T.cov().double())
    components = vectors.flip(1)[:, :model.dim].T.float()                                   # (d, 48)
    spread = values.flip(0)[:model.dim].sqrt().float()
    model.linear_in.weight.data = (components / spread[:, None]).contiguous()
    model.linear_in.bias.data = -components @ average / spread
    model.linear_out.weight.data = (components.T * spread).contiguous()
    model.linear_out.bias.data = average.clone()


def tokenizer_loss(pixels: Tensor, weight: float):
    """L1, squared error, KL, and `weight` times the L1 of what the coarser scales say against the averaged picture."""
    def loss(model: HieraTok, step: int, generator: torch.Generator) -> tuple[Tensor, dict]:
        images = augment(pixels[torch.randint(len(pixels), (BATCH,), generator=generator)], generator)
        latent = model.latent(images)
        made, rough = model.picture(latent.sample(generator))
        fine = LOSSES["l1"] * (made - images).abs().mean() + LOSSES["mse"] * (made - images).square().mean()
        coarse = sum(((level - F.adaptive_avg_pool2d(images, level.shape[-1])).abs().mean() for level in rough),
                     torch.zeros(()))
        return fine + LOSSES["kl"] * latent.kl + weight * coarse, {"fine": fine, "kl": latent.kl}

    return loss


@torch.no_grad()
def tokenizer_scores(model: HieraTok, images: EmojiImages) -> dict:
    """Held-out PSNR and eLPIPS, r-eFID over all pictures, how alike neighbouring latents are, eFID between pictures."""
    latents = torch.cat([model.encode(part) for part in images.pixels.split(256)])
    made = torch.cat([model.decode(part) for part in latents.split(256)])
    held = images.held_out_set()
    square = latents.transpose(1, 2).unflatten(2, (8, 8))
    centred = square - square.mean((0, 2, 3), keepdim=True)
    alike = F.cosine_similarity(centred[..., 1:], centred[..., :-1], dim=1)
    other = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0))
    between = torch.cat([model.decode(part) for part in ((latents + latents[other]) / 2).split(256)])
    pixels_between = (images.pixels + images.pixels[other]) / 2
    return {"psnr": float(psnr(made[held], images.pixels[held]).mean()),
            "elpips": float(elpips(made[held], images.pixels[held]).mean()), "refid": efid(made),
            "neighbour_cosine": float(alike.mean()), "between_efid": efid(between), "pixels_between_efid": efid(pixels_between)}


@torch.no_grad()
def flow_scores(flow: LatentFlow, model: HieraTok, images: EmojiImages) -> dict:
    """eKID, label accuracy and copy rate of pictures made by the flow, as many of each group as there are."""
    generator = torch.Generator().manual_seed(0)
    classes = images.groups[torch.randperm(len(images.groups), generator=generator)[:SAMPLES]]
    made = model.decode(flow.generate(classes, generator, SAMPLE_STEPS))
    found, real = features(made), real_features()
    right = load_emoji_net().logits(found)[0].argmax(-1) == classes
    return {"ekid": kernel_distance(real, found), "accuracy": float(right.float().mean()),
            "copies": copy_rate(found, real[images.train()], real[images.held_out_set()])}


def train_one(variant: str, seed: int, images: EmojiImages, given) -> list[dict]:
    """Rows of one variant and seed: the tokenizer's, then one for each look at the flow."""
    pixels, work = images.pixels[images.train()], given.work / f"{variant}_{seed}"
    shape = SHAPE | VARIANTS[variant]
    torch.manual_seed(seed)
    model = HieraTok(**shape)
    start_linear(model, pixels)
    weight = 0.0 if variant == "no_coarse" else LOSSES["coarse"]
    state = fit(model, tokenizer_loss(pixels, weight), work, Plan(given.steps, ema=0.99, seed=seed, every=100))
    halved(model).eval()
    scores = tokenizer_scores(model, images)
    head = {"variant": variant, "seed": seed}
    rows = [head | {"kind": "tokenizer", "steps": given.steps, "cpu_s": state["cpu_s"]} | scores]
    print(json.dumps(rows[-1]), flush=True)
    latents, classes = model.encode(pixels), images.groups[images.train()]
    torch.manual_seed(seed)
    flow = LatentFlow(model.dim)
    flow.fit_scale(latents)

    def loss(flow: LatentFlow, step: int, generator: torch.Generator) -> tuple[Tensor, dict]:
        picked = torch.randint(len(latents), (FLOW_BATCH,), generator=generator)
        return flow.loss(latents[picked], classes[picked], generator), {}

    def look(flow: LatentFlow) -> dict:
        rows.append(head | {"kind": "flow"} | flow_scores(flow, model, images))
        return {name: round(rows[-1][name], 4) for name in ("ekid", "accuracy", "copies")}

    looks = 4                                       # `fit` looks after every tenth report
    fit(flow, loss, work / "flow", Plan(given.flow_steps, ema=0.98, seed=seed, every=max(1, given.flow_steps // (10 * looks))), look)
    for number, row in enumerate(rows[1:], 1):
        row["steps"] = given.flow_steps * number // looks
    if given.publish and seed == 0 and variant in PUBLISHED:
        publish(PUBLISHED[variant], model, card=dict(
            recipe="recipes/train_hieratok.py", seed=0, steps=given.steps, cpu_s=round(state["cpu_s"]), shape=shape,
            data_hash=PIXELS_SHA256[32], losses=LOSSES, batch=BATCH, metrics={k: round(v, 4) for k, v in scores.items()}))
    return rows


def main() -> None:
    parser = options(__doc__, 400)
    parser.add_argument("--flow-steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", nargs="+", default=["hieratok", "single", "full", "shuffled"], choices=list(VARIANTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    images, path = load_images(), given.work / "rows.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for seed in range(given.seeds):
        for variant in given.variants:
            if any(row["variant"] == variant and row["seed"] == seed for row in rows):
                continue
            rows += train_one(variant, seed, images, given)
            path.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
