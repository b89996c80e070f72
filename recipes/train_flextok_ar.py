"""Train the writers of FlexTok's codes: small autoregressive models under the group, or the subgroup, of a picture.

    python recipes/train_flextok_ar.py --condition group --work FOLDER --publish

One thread, about half a CPU-minute each. Weights "flextok_ar" (9 groups) and "flextok_ar_subgroup" (99 subgroups).
"""
import copy

import torch
from train_token_generator import BATCH, COPIES, codes_of
from training import Plan, fit, halved, options, publish

from frugal.data.emoji import PIXELS_SHA256
from frugal.data.emoji_images import load_images
from frugal.models import load_card
from frugal.models.token_generators import build_generator
from frugal.visual_tokenizers.flextok import load_flextok

NAMES = {"group": "flextok_ar", "subgroup": "flextok_ar_subgroup"}


def main() -> None:
    parser = options(__doc__, 900)
    parser.add_argument("--condition", choices=list(NAMES), default="group")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, tok = load_images(), load_flextok()
    labels = images.groups if given.condition == "group" else images.subgroups
    train_set, held_out = images.train(), images.held_out_set()
    codes, aside = codes_of(tok, train_set, COPIES), codes_of(tok, held_out, 1)[0]
    shape = {"kind": "ar", "vocab_size": tok.quantizer.codebook_size, "length": tok.num_tokens,
             "num_classes": 9 if given.condition == "group" else 99, "width": 64, "num_blocks": 2}
    model, best = build_generator(shape), {"held_out_nats": float("inf")}

    def loss(model, step, generator):
        pick = torch.randint(len(train_set), (BATCH,), generator=generator)
        view = torch.randint(COPIES, (BATCH,), generator=generator)
        return model.loss(codes[view, pick], labels[train_set][pick], generator), {}

    @torch.no_grad()
    def check(model):
        nats = float(model.loss(aside, labels[held_out], torch.Generator().manual_seed(1)))
        if nats < best["held_out_nats"]:
            best.update(held_out_nats=round(nats, 4), state=copy.deepcopy(model.state_dict()))
        return {"held_out_nats": round(nats, 4)}

    state = fit(model, loss, given.work, Plan(steps=given.steps, decay=0.1, ema=0.99, every=10), check)
    check(model)                                            # a run resumed at its end has checked nothing yet
    model.load_state_dict(best.pop("state"))
    print(best, flush=True)
    if given.publish:
        publish(NAMES[given.condition], halved(model), {
            "recipe": "recipes/train_flextok_ar.py", "tokenizer": "flextok", "tokenizer_sha256": load_card("flextok")["sha256"],
            "seed": 0, "steps": state["step"], "shape": shape, "cpu_s": round(state["cpu_s"]), "data_hash": PIXELS_SHA256[32],
            "metrics": best})


if __name__ == "__main__":
    main()
