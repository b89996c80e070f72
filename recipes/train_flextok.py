"""Train FlexTok: encoder, quantizer and flow decoder end to end, or the same with a deterministic decoder as baseline.

    python recipes/train_flextok.py --work FOLDER --publish [--steps 2600] [--deterministic]

One thread, about ten CPU-minutes. The linear start is computed here from the training pictures. Weights "flextok"; with
--deterministic nothing is published, record_flextok.py reads the checkpoint in FOLDER.
"""
import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import Plan, fit, halved, options, publish

from frugal.core.image_metrics import psnr
from frugal.data.emoji import PIXELS_SHA256
from frugal.data.emoji_images import augment, load_images
from frugal.models.emoji_net import load_emoji_net
from frugal.models.rectified_flow import logit_normal, noised, velocity_to
from frugal.visual_tokenizers.flextok import SHAPE, FlexTok, nested_dropout
from frugal.visual_tokenizers.flextok_nets import SMALL

BATCH, LESSONS = 32, dict(null=0.1, at_one=0.125, repa=0.5, mean=1.0)
REPA_BLOCK, GAIN = 2, 0.7                        # GAIN: deviations of a component per unit of the quantizer's tanh


class Lesson(nn.Module):
    """The tokenizer with the head that REPA needs in training alone."""

    def __init__(self, tokenizer: FlexTok, features: int = 72):
        super().__init__()
        self.tokenizer, width = tokenizer, tokenizer.decoder.trunk.width
        self.align = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, features))
        tokenizer.decoder.trunk.blocks[REPA_BLOCK].register_forward_hook(self._keep)
        self.states = None

    def _keep(self, block: nn.Module, given: tuple, states: Tensor) -> None:
        self.states = states

    def repa(self, wanted: Tensor) -> Tensor:
        """1 - cosine between the middle block's patches, averaged 2 x 2, and EmojiNet's third stage."""
        states = self.states[:, :64].transpose(1, 2).unflatten(2, (8, 8))
        ours = self.align(F.avg_pool2d(states, 2).flatten(2).transpose(1, 2))               # (B, 16, features)
        return 1 - F.cosine_similarity(ours.float(), wanted.flatten(2).transpose(1, 2), dim=-1).mean()


def start_linear(model: FlexTok, pixels: Tensor) -> None:
    """Encoder: components in order, three a register, scaled to the quantizer. Decoder: least squares back to pixels."""
    small = F.avg_pool2d(pixels * 2 - 1, pixels.shape[-1] // SMALL).flatten(1)
    average, wanted = small.mean(0), model.num_tokens * model.quantizer.dim
    _, _, components = torch.linalg.svd((small - average).double(), full_matrices=False)
    components = components[:wanted].float()
    scale = GAIN / ((small - average) @ components.T).std(0)
    centre = (model.quantizer.offset / model.quantizer.reach).atanh().repeat(model.num_tokens)
    model.encoder.shortcut.weight.data = (components * scale[:, None]).contiguous()
    model.encoder.shortcut.bias.data = -components @ average * scale - centre               # codes are used evenly
    with torch.no_grad():
        latents = model.quantizer(model.encoder.shortcut(small).unflatten(1, (-1, model.quantizer.dim))).latents
    model.mask.data = latents.mean((0, 1))
    model.null.data = model.mask.data.clone()
    seen = torch.cat([latents.flatten(1), torch.ones(len(latents), 1)], 1)
    seen[:, :-1] -= model.mask.repeat(model.num_tokens)                                     # a masked register adds nothing
    ridge = seen.T @ seen + 3.0 * torch.eye(seen.shape[1])
    solved = torch.linalg.solve(ridge, seen.T @ small)                                      # (wanted + 1, pixels)
    linear = model.decoder.linear
    linear.weight.data = solved[:-1].T.contiguous()
    linear.bias.data = solved[-1] - linear.weight.data @ model.mask.repeat(model.num_tokens)
    half = nested_dropout(latents, torch.full((len(latents),), model.num_tokens // 2), model.mask.detach())
    with torch.no_grad():
        model.decoder.spread.fill_((model.decoder.mean(half) - pixels * 2 + 1).std())


def flow_loss(pixels: Tensor, deterministic: bool):
    """The loss that `fit` calls. deterministic: always s = 1, and no noise at all."""
    net = load_emoji_net()

    def loss(model: Lesson, step: int, generator: torch.Generator) -> tuple[Tensor, dict]:
        tok = model.tokenizer
        images = augment(pixels[torch.randint(len(pixels), (BATCH,), generator=generator)], generator)
        x0 = images * 2 - 1
        quantized = tok.quantized(images)
        keep = torch.tensor(tok.kept)[torch.randint(len(tok.kept), (BATCH,), generator=generator)]
        latents = nested_dropout(quantized.latents, keep, tok.mask)
        drawn = torch.rand(3, BATCH, generator=generator)
        times = torch.where(drawn[1] < LESSONS["at_one"], 1.0, logit_normal(BATCH, generator))
        noise = torch.randn(x0.shape, generator=generator)
        if deterministic:
            times, noise = torch.ones(BATCH), torch.zeros_like(noise)
        else:
            latents = torch.where((drawn[0] < LESSONS["null"])[:, None, None], tok.null, latents)
        mean, x = tok.decoder.mean(latents), noised(x0, noise, times)
        guess = tok.decoder(x, times, latents, mean)
        flow = (velocity_to(guess, x, times) - velocity_to(x0, x, times)).square().mean()
        rough = (mean - x0).square().mean()
        with torch.no_grad():
            wanted = net.stages(images)[2].float()
        repa = model.repa(wanted)
        return flow + LESSONS["mean"] * rough + LESSONS["repa"] * repa, {"flow": flow, "mean": rough, "repa": repa}

    return loss


@torch.no_grad()
def check(tok: FlexTok, held: Tensor, steps: int = 12, seeds: int = 2) -> dict:
    """Held-out PSNR (dB) of the mean of all pictures that agree with k codes, of samples, and of their average."""
    codes, found = tok.encode(held), {}
    used = codes.unique().numel()
    for k in tok.kept:
        found[f"mean_{k}"] = float(psnr(tok.decode_mean(codes[:, :k]), held).mean())
        if steps and k in (1, 16):
            drawn = torch.stack([tok.decode(codes[:, :k], steps, torch.Generator().manual_seed(s)) for s in range(seeds)])
            found |= {f"sample_{k}": float(psnr(drawn[0], held).mean()), f"average_{k}": float(psnr(drawn.mean(0), held).mean()),
                      f"spread_{k}": float(drawn.std(0).mean())}
    return {name: round(value, 3) for name, value in found.items()} | {"used": used}


def main() -> None:
    parser = options(__doc__, 2600)
    parser.add_argument("--deterministic", action="store_true", help="the baseline whose decoder sees no noise")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = load_images()
    train, held = images.pixels[images.train()], images.pixels[images.held_out_set()]
    torch.manual_seed(0)
    model = Lesson(FlexTok(**SHAPE))
    start_linear(model.tokenizer, train)
    probe = held[::4]
    state = fit(model, flow_loss(train, given.deterministic), given.work, Plan(given.steps, ema=0.998, every=50),
                lambda lesson: check(lesson.tokenizer, probe, 0 if given.deterministic else 12))
    tok = halved(model.tokenizer).eval()
    metrics = check(tok, held, 0 if given.deterministic else 20, 4)
    print(json.dumps(metrics), flush=True)
    if given.publish and not given.deterministic:
        publish("flextok", tok, card=dict(
            recipe="recipes/train_flextok.py", seed=0, steps=given.steps, cpu_s=round(state["cpu_s"]), shape=SHAPE,
            data_hash=PIXELS_SHA256[32], losses=LESSONS, batch=BATCH, metrics=metrics), gates={"mean_16": 16.6}, force=given.force)


if __name__ == "__main__":
    main()
