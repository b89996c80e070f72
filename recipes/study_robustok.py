"""The correlation study of notebook 04: small tokenizers with and without perturbation, a generator each, and their scores.

    python recipes/study_robustok.py --work ~/.cache/frugal/training/robustok_study

One thread, about a minute a tokenizer; stops and resumes anywhere. Writes recorded/robustok_study.json after each tokenizer. No eLPIPS in
the loss, 16 codes a picture: these are made to be compared with each other, not to be good.
"""
from pathlib import Path

import pandas as pd
import torch

from frugal.core.measure import hardware
from frugal.core.recording import read_recorded, record
from frugal.data.emoji_images import load_images
from frugal.models.emoji_scores import copy_rate, efid, efid_interval, features, psnr
from frugal.models.mini_ar import MiniAR
from frugal.models.vq_grid import VQGrid, build_vq_grid, start_from_pca
from frugal.visual_tokenizers import robustok_study
from frugal.visual_tokenizers.robustok import PerturbSchedule, scaled_delta
from frugal.visual_tokenizers.robustok_pfid import perturbed_efid, perturbed_images
from frugal.visual_tokenizers.robustok_study import BASELINES, SPECS, Spec
from train_robustok import hook
from train_token_generator import BATCH, COPIES, codes_of
from train_vq_grid import batch, picture_loss
from training import Plan, fit, options

OUT = Path(robustok_study.__file__).parent / "recorded" / "robustok_study.json"
GUIDANCE, AR_STEPS = 1.5, 500


def tokenizer_of(spec: Spec, work: Path, steps: int) -> VQGrid:
    torch.manual_seed(0)
    model = build_vq_grid({"grid": 4, "fine": 16, "width": 48, "blocks": [0, 1], "linear_shortcut": True,
                           "quantizer": {"kind": "vq", "codebook_size": spec.codebook_size, "dim": spec.dim}})
    start_from_pca(model)
    perturbed = spec.kind != "none"
    disturb = hook(PerturbSchedule(beta=spec.beta, delta=scaled_delta(spec.codebook_size), kind=spec.kind), steps) if perturbed else None

    def loss(model, step, generator):
        images = batch(step, generator)
        made = model(images, disturb(step) if disturb else None)
        value, parts = picture_loss(made.images, images, False)
        return value + made.quantized.loss, parts
    fit(model, loss, work / "tokenizer", Plan(steps=steps, ema=0.99))
    return model


def generator_of(tokenizer: VQGrid, work: Path, steps: int) -> MiniAR:
    known = load_images()
    codes, groups = codes_of(tokenizer, known.train(), COPIES), known.groups[known.train()]
    torch.manual_seed(0)
    model = MiniAR(tokenizer.quantizer.codebook_size, tokenizer.num_tokens, width=64, num_blocks=3, num_heads=4)

    def loss(model, step, generator):
        copy, place = torch.randint(COPIES, (BATCH,), generator=generator), torch.randint(len(groups), (BATCH,), generator=generator)
        return model.loss(codes[copy, place], groups[place], generator), {}
    fit(model, loss, work / "generator", Plan(steps=steps, decay=0.1, ema=0.99))
    return model


@torch.no_grad()
def measure(tokenizer: VQGrid, model: MiniAR) -> dict:
    known = load_images()
    every, held = known.pixels, known.held_out_set()
    plain = perturbed_images(tokenizer, every, 0.0, 1)
    row = {"psnr": float(psnr(plain[held], every[held]).mean()), "r_efid": efid(plain)}
    row |= dict(zip(("r_low", "r_high"), ends(plain)))
    cells: list[dict] = []
    row["p_efid"] = perturbed_efid(tokenizer, every, on_cell=cells.append)
    row |= {"p_low": min(c["efid"] for c in cells), "p_high": max(c["efid"] for c in cells)}
    found = []
    for seed in range(2):
        made = torch.cat([tokenizer.decode(model.generate(part, torch.Generator().manual_seed(100 * seed + number), guidance=GUIDANCE))
                          for number, part in enumerate(known.groups.split(256))])
        found.append((efid(made), copy_rate(made), ends(made)))
    nats = float(model.loss(tokenizer.encode(every[held]), known.groups[held]))
    return row | {"g_efid": (found[0][0] + found[1][0]) / 2, "g_first": found[0][0], "g_second": found[1][0], "g_low": found[0][2][0],
                  "g_high": found[0][2][1], "copy_rate": (found[0][1] + found[1][1]) / 2, "held_out_nats": nats}


def ends(images: torch.Tensor) -> tuple[float, float]:
    found = efid_interval(features(images))
    return found.low, found.high


def main() -> None:
    parser = options(__doc__, steps=400)
    parser.add_argument("--baselines", action="store_true", help="also tokenizers trained with random codes and with noise")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    OUT.parent.mkdir(exist_ok=True)
    table = read_recorded(OUT) if OUT.exists() else pd.DataFrame({"tokenizer": []})
    for spec in SPECS + (BASELINES if given.baselines else ()):
        if spec.name in set(table.tokenizer):
            continue
        work = given.work / f"{spec.codebook_size}_{spec.dim}_{spec.kind}_{spec.beta:g}"
        tokenizer = tokenizer_of(spec, work, given.steps).eval()
        model = generator_of(tokenizer, work, AR_STEPS).eval()
        row = {"tokenizer": spec.name, **vars(spec), "delta": scaled_delta(spec.codebook_size), "steps": given.steps, "ar_steps": AR_STEPS,
               "guidance": GUIDANCE, "threads": 1, "hardware": hardware(), **measure(tokenizer, model)}
        print(row, flush=True)
        table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
        record(table, OUT)


if __name__ == "__main__":
    main()
