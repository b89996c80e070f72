"""Train TiTok in a single stage (pixels): K codes for a whole picture.

    python recipes/train_titok.py --tokens 16 --work ~/.cache/frugal/training/titok_16 --publish

One thread; stops and resumes anywhere. Loss: L1 + 2 MSE + 0.1 eLPIPS (after a quarter of the training) + the quantizer's. The gate is
PCA with K real components, and 18 dB for 16 and 32 tokens, on held-out concepts.
"""
import torch

from frugal.data.emoji import PIXELS_SHA256
from frugal.data.emoji_images import load_images, pca_basis
from frugal.visual_tokenizers.titok import build_titok, start_from_pca
from train_vq_grid import batch, check, picture_loss
from training import Plan, fit, halved, options, publish

BATCH = 48


def pca_psnr(num_components: int) -> float:
    """Held-out PSNR of PCA with real components, mean over pictures, dB."""
    images, basis = load_images(), pca_basis(num_components)
    real = images.pixels[images.held_out_set()]
    made = basis.decode(basis.encode(real)).clamp(0, 1)
    return float((-10 * (made - real).square().flatten(1).mean(1).log10()).mean())


def gate(num_tokens: int) -> float:
    return max(pca_psnr(num_tokens), 18.0 if num_tokens in (16, 32) else 0.0)


def arguments():
    parser = options(__doc__, steps=2000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--name", default=None, help="of the weights; default titok_<tokens>")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--quantizer", default="fsq", choices=("fsq", "vq"), help="vq: 256 cosine codes of dimension 8")
    parser.add_argument("--levels", type=int, nargs="+", default=[8, 6, 5], help="FSQ: levels of each channel")
    parser.add_argument("--rank", type=int, default=192, help="components of the linear shortcut; 0 for none")
    parser.add_argument("--no-perceptual", action="store_true", help="leave eLPIPS out")
    parser.add_argument("--note", default=None, help="a line for the card, e.g. what was tried where a gate is missed")
    parser.add_argument("--adam", type=float, default=2e-3)
    parser.add_argument("--shift", type=int, default=0, help="of the augmentation, px: the components are those of pictures as they are")
    parser.add_argument("--decay", type=float, default=0.05)
    return parser


def shape_of(given) -> dict:
    """Arguments of the model, as the card keeps them."""
    kind = {"levels": given.levels} if given.quantizer == "fsq" else {"codebook_size": 256, "dim": 8}
    return {"num_tokens": given.tokens, "width": given.width, "num_blocks": given.blocks, "rank": given.rank,
            "quantizer": {"kind": given.quantizer, **kind}}


def train(given, disturb=None, **card) -> dict:
    """Builds, trains and publishes; returns the metrics. disturb(step) -> a hook of `TiTok.forward`, or None."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = shape_of(given)
    model = build_titok(shape)
    if given.rank:
        images = load_images()
        start_from_pca(model, images.pixels[images.train()])
    print("start", check(model.eval()), flush=True)

    def loss(model, step, generator):
        images = batch(step, generator, BATCH, given.shift)
        made = model(images, disturb(step) if disturb else None)
        value, parts = picture_loss(made.images, images, not given.no_perceptual and step >= given.steps // 4)
        return value + made.quantized.loss, parts

    plan = Plan(steps=given.steps, adam=given.adam, decay=given.decay, ema=0.995)
    state = fit(model, loss, given.work, plan, check)
    metrics = check(halved(model)) | {"psnr_pca": round(pca_psnr(given.tokens), 3)}
    print(metrics, flush=True)
    if given.publish:
        publish(given.name or f"titok_{given.tokens}", model,
                {"recipe": "recipes/train_titok.py", "seed": plan.seed, "steps": state["step"], "shape": shape,
                 "cpu_s": round(state["cpu_s"]), "data_hash": PIXELS_SHA256[32], "metrics": metrics,
                 **({"note": given.note} if given.note else {}), **card},
                {"psnr_held_out": gate(given.tokens)}, given.force)
    return metrics


if __name__ == "__main__":
    train(arguments().parse_args())
