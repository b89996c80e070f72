"""Train a small generator over the codes of a tokenizer: autoregressive (MiniAR) or masked (MiniMaskGIT).

    python recipes/train_token_generator.py --tokenizer titok_16 --generator ar --work ~/.cache/frugal/training/titok_16_ar --publish

Each training picture is encoded COPIES times, once as it is and else moved by at most 1 px (no flip: a mirrored letter is another
picture). Weights: <tokenizer>_<generator> in the package with --publish, and final.safetensors in the work folder always. The averaged
weights with the lowest held-out loss among the checks are kept. Another recipe may call `train(tokenizer, given)`.
"""
import copy
import json

import torch
from safetensors.torch import save_file

from frugal.data.emoji import PIXELS_SHA256
from frugal.data.emoji_images import augment, load_images
from frugal.models import load_card
from frugal.models.token_generators import build_generator
from frugal.models.vq_grid import load_vq_grid
from frugal.visual_tokenizers.titok import load_titok
from training import Plan, fit, halved, options, publish

COPIES, BATCH = 4, 64


def load_tokenizer(name: str):
    """A grid or a TiTok, by the shape on its card."""
    return load_vq_grid(name) if "grid" in load_card(name)["shape"] else load_titok(name=name)


def codes_of(tokenizer, places: torch.Tensor, copies: int, seed: int = 0) -> torch.Tensor:
    """(copies, N, tokens) codes of the pictures at `places`."""
    pixels, generator = load_images().pixels[places], torch.Generator().manual_seed(seed)
    views = [pixels] + [augment(pixels, generator, flip=False, shift=1, hue=False) for _ in range(copies - 1)]
    return torch.stack([torch.cat([tokenizer.encode(part) for part in view.split(256)]) for view in views])


def arguments():
    parser = options(__doc__, steps=900)
    parser.add_argument("--tokenizer", required=True, help="name of its weights")
    parser.add_argument("--generator", default="ar", choices=("ar", "maskgit"))
    parser.add_argument("--name", default=None, help="of the weights; default <tokenizer>_<generator>")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--blocks", type=int, default=3)
    return parser


def train(tokenizer, given, **card) -> dict:
    """Trains a generator on the codes of `tokenizer`, publishes it if asked, and returns the metrics."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = load_images()
    train_set, held_out = images.train(), images.held_out_set()
    codes, aside = codes_of(tokenizer, train_set, COPIES), codes_of(tokenizer, held_out, 1)[0]
    shape = {"kind": given.generator, "vocab_size": tokenizer.quantizer.codebook_size, "length": tokenizer.num_tokens,
             "width": given.width, "num_blocks": given.blocks}
    model, best = build_generator(shape), {"held_out_nats": float("inf")}

    def loss(model, step, generator):
        pick = torch.randint(len(train_set), (BATCH,), generator=generator)
        copy_of = torch.randint(COPIES, (BATCH,), generator=generator)
        value = model.loss(codes[copy_of, pick], images.groups[train_set][pick], generator)
        return value, {}

    @torch.no_grad()
    def check(model):
        generator = torch.Generator().manual_seed(1)
        nats = float(model.loss(aside, images.groups[held_out], generator))
        if nats < best["held_out_nats"]:
            best.update(held_out_nats=round(nats, 4), state=copy.deepcopy(model.state_dict()))
        return {"held_out_nats": round(nats, 4)}

    plan = Plan(steps=given.steps, muon=0.01, adam=2e-3, decay=0.1, ema=0.99, every=25)
    state = fit(model, loss, given.work, plan, check)
    check(model)                                            # a run resumed at its end has checked nothing yet
    model.load_state_dict(best.pop("state"))
    halved(model)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, given.work / "final.safetensors",
              {"shape": json.dumps(shape), "tokenizer": str(given.tokenizer), "metrics": json.dumps(best)})
    print(best, flush=True)
    if given.publish:
        publish(given.name or f"{given.tokenizer}_{given.generator}", model,
                {"recipe": "recipes/train_token_generator.py", "tokenizer": given.tokenizer, "seed": plan.seed, "steps": state["step"],
                 "shape": shape, "cpu_s": round(state["cpu_s"]), "data_hash": PIXELS_SHA256[32], "metrics": best, **card})
    return best


if __name__ == "__main__":
    chosen = arguments().parse_args()
    train(load_tokenizer(chosen.tokenizer), chosen)
