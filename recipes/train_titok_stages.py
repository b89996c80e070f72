"""Train TiTok as the paper does: 256 cosine codes, no shortcut, stage 1 on the codes of vq_grid_64, stage 2 on pixels.

    python recipes/train_titok_stages.py --work ~/.cache/frugal/training/titok_stages
    python recipes/train_titok_stages.py --single --work ~/.cache/frugal/training/titok_single

--single: the same quantizer and network trained on pixels at once. The weights stay in the work folder (`model.safetensors`): the
package holds the rows that recipes/record_titok.py measures. --steps: of stage 1 (or of the single stage); stage 2 takes 2/5 of them.
"""
import json

import torch
from safetensors.torch import save_file

from frugal.models.quantizers import VectorQuantizer
from frugal.models.vq_grid import load_vq_grid
from frugal.visual_tokenizers.titok import TiTok
from frugal.visual_tokenizers.titok_stages import TwoStageTiTok
from train_vq_grid import batch, check, picture_loss
from training import Plan, fit, options

WARM, BATCH = 200, 48                                    # steps without a quantizer: else all latents fall on one code


def stage_1(model, step, generator):
    value, right = model.proxy_loss(batch(step, generator, BATCH, 1), quantize=step >= WARM)
    return value, {"right": right}


def stage_2(model, step, generator):
    images = batch(step, generator, BATCH, 1)
    return picture_loss(model.decoded(images), images, True)


def single_stage(steps: int):
    def loss(model, step, generator):
        images = batch(step, generator, BATCH, 1)
        latents = model.latents(images)
        if step < WARM:
            return picture_loss(model.decode_latents(model.quantizer.prepared(latents.float())), images, False)
        quantized = model.quantizer(latents)
        value, parts = picture_loss(model.decode_latents(quantized.latents), images, step >= steps // 4)
        return value + quantized.loss, parts

    return loss


def main() -> None:
    parser = options(__doc__, steps=1200)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--single", action="store_true", help="pixels at once, no grid")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if given.single:
        model = TiTok(given.tokens, quantizer=VectorQuantizer(256, 8))
        fit(model, single_stage(given.steps), given.work, Plan(steps=given.steps, ema=0.99, decay=0.05), check)
    else:
        model = TwoStageTiTok(load_vq_grid(), num_tokens=given.tokens)
        model.grid.requires_grad_(False)
        fit(model, stage_1, given.work / "1", Plan(steps=given.steps, ema=0.99, decay=0.05), check)
        model.grid.requires_grad_(True)
        model.freeze_encoder()
        fit(model, stage_2, given.work / "2", Plan(steps=given.steps * 2 // 5, muon=0.004, adam=1e-3, ema=0.99), check)
    metrics = check(model.eval())
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, given.work / "model.safetensors",
              {"metrics": json.dumps(metrics), "steps": str(given.steps), "tokens": str(given.tokens)})
    print(metrics, flush=True)


if __name__ == "__main__":
    main()
