"""Train a grid tokenizer: VQ, FSQ or residual VQ over 8x8, 4x4 or 2x2 squares.

    python recipes/train_vq_grid.py --work ~/.cache/frugal/training/vq_grid_64 --publish
    python recipes/train_vq_grid.py --grid 4 --quantizer rvq --levels 8 --name rvq_grid --work ... --publish

One thread; stops and resumes anywhere. Loss: L1 + 2 MSE + 0.1 eLPIPS (after a quarter of the training) + the quantizer's.
"""
import torch
import torch.nn.functional as F

from frugal.core.image_metrics import perceptual_distance
from frugal.data.emoji import PIXELS_SHA256
from frugal.data.emoji_images import augment, load_images
from frugal.models.emoji_net import load_emoji_net
from frugal.models.quantizers import codebook_usage
from frugal.models.vq_grid import build_vq_grid, start_from_pca
from training import Plan, fit, halved, options, publish

BATCH = 48
GATES = {8: 22.0, 4: 16.6, 2: 14.6}      # held-out PSNR, dB; for the two coarse grids what PCA of as many numbers reaches


def picture_loss(made: torch.Tensor, images: torch.Tensor, perceptual: bool):
    """L1 + 2 MSE, and 0.1 eLPIPS where asked; and the parts to print."""
    made, images = made.float(), images.float()
    l1, mse = F.l1_loss(made, images), F.mse_loss(made, images)
    value, parts = l1 + 2 * mse, {"l1": l1, "psnr": -10 * mse.log10()}
    if perceptual:
        net = load_emoji_net()
        with torch.no_grad():
            real = net.stages(images)
        parts["elpips"] = perceptual_distance(net.stages(made), real).mean()
        value = value + 0.1 * parts["elpips"]
    return value, parts


def batch(step: int, generator: torch.Generator, size: int = BATCH, shift: int = 2) -> torch.Tensor:
    """Augmented training pictures."""
    images = load_images()
    places = images.train()[torch.randint(len(images.train()), (size,), generator=generator)]
    return augment(images.pixels[places], generator, shift=shift)


@torch.no_grad()
def check(model) -> dict[str, float]:
    """PSNR on both splits (mean over pictures, dB) and how much of the codebook is used."""
    images, found = load_images(), {}
    for split, places in (("held_out", images.held_out_set()), ("train", images.train()[::8])):
        codes = model.encode(images.pixels[places])
        mse = (model.decode(codes) - images.pixels[places]).square().flatten(1).mean(1)
        found[f"psnr_{split}"] = round(float((-10 * mse.clamp(min=1e-10).log10()).mean()), 3)
    usage = codebook_usage(codes, model.quantizer.codebook_size)
    return found | {"used": round(usage["used"], 3), "perplexity": round(usage["perplexity"], 1)}


def arguments():
    parser = options(__doc__, steps=3000)
    parser.add_argument("--name", default=None, help="of the weights; default vq_grid_<tokens>")
    parser.add_argument("--grid", type=int, default=8, choices=(8, 4, 2))
    parser.add_argument("--quantizer", default="vq", choices=("vq", "fsq", "rvq"))
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--levels", type=int, nargs="+", default=[8], help="residual VQ: depth; FSQ: levels of each channel")
    parser.add_argument("--fine", type=int, default=48)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--blocks", type=int, nargs=2, default=(1, 2))
    parser.add_argument("--linear-shortcut", action="store_true")
    parser.add_argument("--no-perceptual", action="store_true", help="leave eLPIPS out")
    parser.add_argument("--adam", type=float, default=2e-3)
    return parser


def shape_of(given) -> dict:
    """Arguments of the model, as the card keeps them."""
    sizes = {"codebook_size": given.codebook_size, "dim": given.dim}
    quantizer = {"vq": sizes, "fsq": {"levels": given.levels}, "rvq": {"num_levels": given.levels[0], **sizes}}[given.quantizer]
    return {"grid": given.grid, "fine": given.fine, "width": given.width, "blocks": list(given.blocks),
            "linear_shortcut": given.linear_shortcut, "quantizer": {"kind": given.quantizer, **quantizer}}


def train(given, disturb=None, **card) -> dict:
    """Builds, trains and publishes; returns the metrics. disturb(step) -> a hook of `VQGrid.forward`, or None."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = shape_of(given)
    model = build_vq_grid(shape)
    if given.linear_shortcut:
        start_from_pca(model)

    def loss(model, step, generator):
        images = batch(step, generator)
        made = model(images, disturb(step) if disturb else None)
        value, parts = picture_loss(made.images, images, not given.no_perceptual and step >= given.steps // 4)
        return value + made.quantized.loss, parts

    plan = Plan(steps=given.steps, adam=given.adam, decay=0.02, ema=0.995)
    state = fit(model, loss, given.work, plan, check)
    metrics = check(halved(model))
    print(metrics, flush=True)
    if given.publish:
        publish(given.name or f"vq_grid_{given.grid ** 2}", model,
                {"recipe": "recipes/train_vq_grid.py", "seed": plan.seed, "steps": state["step"], "shape": shape,
                 "cpu_s": round(state["cpu_s"]), "data_hash": PIXELS_SHA256[32], "metrics": metrics, **card},
                {"psnr_held_out": GATES[given.grid]}, given.force)
    return metrics


if __name__ == "__main__":
    train(arguments().parse_args())
