"""Train ResGen, or a rival, on the codes of the residual tokenizer.

    python recipes/train_resgen.py --model resgen --depth 8 --work ~/.cache/frugal/training/resgen_8 --publish

--model: resgen, rq (RQ-Transformer), flat (MaskGIT over all codes) or softmax (a softmax a level). Each gets two or
three CPU minutes. Trained on five copies of each picture, four of them shifted. --publish ships the weights; without it they stay in the
work folder, where recipes/record_resgen.py finds those of the rivals.
"""

import torch
from safetensors.torch import save_file

from frugal.data.emoji import PIXELS_SHA256
from frugal.data.emoji_images import augment, load_images
from frugal.visual_tokenizers.resgen import ResGen, codebooks_of, load_rvq
from frugal.visual_tokenizers.resgen_baselines import FlatMaskGIT, RQTransformer, SoftmaxHeads
from training import Plan, fit, halved, options, publish

KINDS = {"resgen": ResGen, "rq": RQTransformer, "flat": FlatMaskGIT, "softmax": SoftmaxHeads}
SIZES = {"width": 96, "num_blocks": 3, "num_heads": 4}
EXTRA = {"resgen": {"components": 32}, "rq": {"depth_blocks": 1}}
STEPS = {"resgen": (3000, 64), "rq": (2000, 32), "flat": (1100, 16), "softmax": (2000, 64)}  # and pictures a step
COPIES = 5


def codes_of(places: torch.Tensor, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, groups) of pictures, first as they are, then shifted by up to 2 px."""
    images, tokenizer, generator = load_images(), load_rvq(), torch.Generator().manual_seed(0)
    found = []
    for copy in range(copies):
        pixels = images.pixels[places]
        pixels = pixels if copy == 0 else augment(pixels, generator, flip=False, hue=False)
        found += [tokenizer.encode(part) for part in pixels.split(256)]
    return torch.cat(found), images.groups[places].repeat(copies)


def build(kind: str, depth: int):
    """An untrained model of this kind over the first `depth` levels."""
    return KINDS[kind](codebooks_of(load_rvq())[:depth], **SIZES, **EXTRA.get(kind, {}))


def main() -> None:
    parser = options(__doc__, steps=0)
    parser.add_argument("--model", choices=KINDS, default="resgen")
    parser.add_argument("--depth", type=int, default=8, choices=(2, 4, 8))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, kind = load_images(), given.model
    steps, size = given.steps or STEPS[kind][0], STEPS[kind][1]
    codes, classes = codes_of(images.train(), COPIES)
    held, held_classes = codes_of(images.held_out_set(), 1)
    codes, held = codes[..., : given.depth], held[..., : given.depth]
    model = build(kind, given.depth)
    if kind in ("resgen", "softmax"):
        model.measure_scales(codes)
    if kind == "flat":
        codes, held = codes.flatten(1), held.flatten(1)

    def loss(model, step, generator):
        rows = torch.randint(len(codes), (size,), generator=generator)
        return model.loss(codes[rows], classes[rows], generator), {}

    @torch.no_grad()
    def check(model):
        model.eval()
        some = slice(0, len(held))
        return {
            name: round(float(model.loss(x[some], c[some], torch.Generator().manual_seed(1))), 4)
            for name, x, c in (
                ("held_out_nats", held, held_classes),
                ("train_nats", codes[: len(held)], classes[: len(held)]),
            )
        }

    plan = Plan(steps=steps, ema=0.995)
    state = fit(model, loss, given.work, plan, check)
    metrics = check(halved(model))
    card = {
        "recipe": "recipes/train_resgen.py",
        "seed": plan.seed,
        "steps": steps,
        "cpu_s": round(state["cpu_s"]),
        "data_hash": PIXELS_SHA256[32],
        "metrics": metrics,
        "shape": {"depth": given.depth, **SIZES, **EXTRA.get(kind, {})},
    }
    print(card, flush=True)
    save_file(model.state_dict(), given.work / "final.safetensors")
    if given.publish:
        publish(f"resgen_{given.depth}" if kind == "resgen" else f"resgen_{kind}_{given.depth}", model, card)


if __name__ == "__main__":
    main()
