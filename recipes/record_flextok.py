"""Record what notebook 04 shows of FlexTok: scores, pictures, time and labels against the number of kept codes.

    python recipes/record_flextok.py [--only kept|deterministic|pictures|time|labels|steps] [--deterministic FOLDER]

One thread, about six CPU-minutes. Needs the weights of recipes/train_flextok.py and train_flextok_ar.py; of the baselines
those that are there (titok_16, vq_grid_16). --deterministic: the folder of `train_flextok.py --deterministic`, whose decoder
is trained with squared error alone; without it that baseline keeps the rows that were recorded last. `--only deterministic`
replaces that baseline's rows and leaves the others.
"""
import argparse
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from frugal.core.measure import hardware
from frugal.core.recording import load_recorded, record, recorded_names
from frugal.data.emoji_images import load_images
from frugal.models import list_weights, load_card
from frugal.models.emoji_scores import efid
from frugal.models.token_generators import load_generator
from frugal.models.vq_grid import load_vq_grid
from frugal.visual_tokenizers import flextok_measure as measure
from frugal.visual_tokenizers.flextok import SHAPE, FlexTok, load_flextok
from frugal.visual_tokenizers.titok import load_titok

OUT = Path(measure.__file__).parent / "recorded"
MSE = "squared-error decoder, 500 steps"
EMOJI = ["lady beetle", "flag: Germany"]


def write(rows, name: str, **constant) -> None:
    table = pd.DataFrame(rows).assign(model_hash=load_card("flextok")["sha256"][:16], **constant)
    record(table, OUT / f"{name}.json")
    print(table[[c for c in table.columns if c != "png"]].round(3).to_string(), flush=True)


def kept_before(baseline: bool) -> list[dict]:
    """Rows recorded last: those of the squared-error baseline, or all others."""
    if "flextok_kept" not in recorded_names("visual_tokenizers"):
        return []
    known = load_recorded("visual_tokenizers", "flextok_kept").drop(columns=["model_hash"])
    return known[(known["what"] == MSE) == baseline].to_dict("records")


def deterministic_rows(folder: Path) -> list[dict]:
    """The squared-error baseline's rows, from its checkpoint."""
    tensors = load_file(folder / "checkpoint.safetensors")
    start = "average.tokenizer."
    tok = FlexTok(**SHAPE)
    tok.load_state_dict({name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)})
    tok.eval().requires_grad_(False)
    images = load_images()
    held, rows = images.pixels[images.held_out_set()], []
    codes = measure.all_decoded(lambda x, _: tok.encode(x), images.pixels)
    for k in tok.kept:
        whole = measure.all_decoded(lambda part, _: tok.decode_mean(part[:, :k]), codes)
        rows.append({"what": MSE, "k": k, "bits": k * tok.bits / 16, "refid": efid(whole)}
                    | measure.pair_row(tok.decode_mean(tok.encode(held)[:, :k]), held))
    return rows


def record_kept(tok: FlexTok, folder: Path | None) -> None:
    rows = measure.kept_rows(tok) + (deterministic_rows(folder) if folder else kept_before(baseline=True))
    for name, label, load in (("titok_16", "TiTok-16 cut", lambda: load_titok(16)), ("vq_grid_16", "VQ grid 4 x 4 cut", lambda: load_vq_grid("vq_grid_16"))):
        if name in list_weights():
            other = load()
            rows += measure.truncated_rows(label, other, other.decode_latents, tok.kept)
    write(rows, "flextok_kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("kept", "deterministic", "pictures", "time", "labels", "steps"))
    parser.add_argument("--deterministic", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    tok = load_flextok()

    def wanted(name: str) -> bool:
        return given.only in (None, name)

    if wanted("pictures"):
        write(measure.picture_rows(tok, EMOJI), "flextok_pictures")
    if wanted("kept"):
        with torch.no_grad():
            record_kept(tok, given.deterministic)
    if given.only == "deterministic":
        write(kept_before(baseline=False) + deterministic_rows(given.deterministic), "flextok_kept")
    if wanted("steps"):
        write(measure.step_rows(tok), "flextok_steps", threads=1, hardware=hardware())
    if wanted("time"):
        write(measure.time_rows(tok, load_generator("flextok_ar")), "flextok_time", threads=1, hardware=hardware())
    if wanted("labels"):
        writers = {"group": load_generator("flextok_ar"), "subgroup": load_generator("flextok_ar_subgroup")}
        write(measure.label_rows(tok, writers), "flextok_labels")


if __name__ == "__main__":
    main()
