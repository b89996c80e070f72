"""Record TiTok's rows: time over the number of tokens, what the generators make, the paper's two stages, pictures.

    python recipes/record_titok.py [TABLE ...]

Without names all tables are written. Networks that are not shipped (generators at 8 and 32 tokens, the masked ones, the two stages)
come from ~/.cache/frugal/training, where recipes/train_token_generator.py and train_titok_stages.py leave them; what is not there
is left out of the rows, with a line that says so.
"""
import json
import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from frugal.core.fetch import cache_dir
from frugal.core.recording import load_recorded, record
from frugal.data.emoji_images import load_images
from frugal.explore.pictures.stored import to_text
from frugal.models import list_weights
from frugal.models.emoji_scores import efid, efid_floor, pair_scores, set_scores
from frugal.models.quantizers import VectorQuantizer, codebook_usage
from frugal.models.token_generators import build_generator, load_generator
from frugal.models.vq_grid import load_vq_grid
from frugal.visual_tokenizers import titok_measure as measure
from frugal.visual_tokenizers.titok import TiTok, load_titok
from frugal.visual_tokenizers.titok_stages import TwoStageTiTok

FOLDER = Path(__file__).parents[1] / "lib/frugal/visual_tokenizers/recorded"
WORK = Path(cache_dir()) / "training"
TOKENIZERS = ("vq_grid_64", "titok_32", "titok_16", "titok_8", "titok_4")
PICTURED = ("crab", "partying face", "hot beverage", "flag: Ireland")      # held out
STEPS_GROUP, SEED = "Food & Drink", 3                                           # the picture in the making
SHOWN = ("crab", "hot beverage")                                           # whose attention is shown


def tokenizer(name: str):
    return load_vq_grid(name) if name.startswith("vq_grid") else load_titok(name=name)


def generator(name: str):
    """Shipped, or from the work folder; None where it was not trained."""
    if name in list_weights():
        return load_generator(name)
    path = WORK / name / "final.safetensors"
    if not path.exists():
        print(f"{name} is not trained, left out", flush=True)
        return None
    with safe_open(path, "pt") as file:
        model = build_generator(json.loads(file.metadata()["shape"]))
    model.load_state_dict(load_file(path))
    return model.requires_grad_(False).eval()


def titok_speed() -> pd.DataFrame:
    ready = {name: tokenizer(name) for name in TOKENIZERS if name in list_weights()}
    parts = [measure.speed_rows(), measure.speed_rows(batch=16, repeats=3), measure.tokenizer_rows(ready), measure.tokenizer_rows(ready, 16)]
    return pd.concat(parts, ignore_index=True)


def titok_generated() -> pd.DataFrame:
    """One picture for each emoji, of its group, by every trained generator; the tokenizer's own r-eFID beside it."""
    images, rows = load_images(), []
    for name in [name for name in TOKENIZERS if name in list_weights()]:
        model = tokenizer(name)
        back = efid(measure.decoded(model, images.pixels))
        for kind in measure.GENERATORS:
            made = generator(f"{name}_{kind}")
            if made is None:
                continue
            for temperature in measure.TEMPERATURES[kind]:
                found = measure.pictures(model, made, images.groups, temperature=temperature)
                rows.append({"tokenizer": name, "tokens": model.num_tokens, "bits": model.bits, "kind": kind, "temperature": temperature,
                             "r_efid": back, "floor": efid_floor(), **set_scores(found, images.groups)})
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def titok_stages() -> pd.DataFrame:
    """The paper's way against ours at 32 tokens, and the grid that gives the proxy codes."""
    made = {"grid of 64 codes": load_vq_grid(), "one stage, FSQ and linear shortcut": load_titok(32)}
    path = WORK / "titok_stages" / "model.safetensors"
    if path.exists():
        made["two stages, cosine codes"] = _load(TwoStageTiTok(load_vq_grid(), num_tokens=32), path)
    path = WORK / "titok_single" / "model.safetensors"
    if path.exists():
        made["one stage, cosine codes"] = _load(TiTok(32, quantizer=VectorQuantizer(256, 8)), path)
    images, rows = load_images(), []
    held = images.pixels[images.held_out_set()]
    for name, model in made.items():
        train = images.pixels[images.train()[::8]]
        usage = codebook_usage(model.encode(held), model.quantizer.codebook_size)
        rows.append({"variant": name, "tokens": model.num_tokens, "bits": model.bits, **pair_scores(measure.decoded(model, held), held),
                     "psnr_train": pair_scores(measure.decoded(model, train), train)["psnr"],
                     "r_efid": efid(measure.decoded(model, images.pixels)), "used": usage["used"], "perplexity": usage["perplexity"]})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def _load(model, path: Path):
    model.load_state_dict(load_file(path))
    return model.requires_grad_(False).eval()


def titok_attention() -> pd.DataFrame:
    """Where TiTok-16's latent tokens look, in each block, and which patches move them, in thousandths."""
    images, model, rows = load_images(), load_titok(16), []
    for name in SHOWN:
        picture = images.pixels[images.names.index(name)]
        blocks = measure.latent_attention(model, picture[None])[0]
        views = {f"attention, block {block}": maps for block, maps in enumerate(blocks, 1)} | {"what moves it": measure.patch_effect(model, picture)}
        for view, maps in views.items():
            for token, row in enumerate(maps):
                rows.append({"name": name, "view": view, "token": token, "on_patches": float(row.sum()), "spread": float(measure.spread(row)),
                             "thousandths": " ".join(str(round(1000 * float(v))) for v in row)})
    return pd.DataFrame(rows)


def titok_board() -> pd.DataFrame:
    """Held-out emoji through TiTok with 4 to 32 tokens, and through the grids."""
    images, rows = load_images(), []
    pixels = torch.stack([images.pixels[images.names.index(name)] for name in PICTURED])
    ways = [("original", None)] + [(f"TiTok, {k} tokens", load_titok(k)) for k in (4, 8, 16, 32)]
    ways += [(f"grid, {k} tokens", load_vq_grid(f"vq_grid_{k}")) for k in (16, 64) if f"vq_grid_{k}" in list_weights()]
    for label, model in ways:
        made = pixels if model is None else model.decode(model.encode(pixels))
        for name, picture, original in zip(PICTURED, made, pixels):
            db = float(-10 * (picture - original).square().mean().clamp(min=1e-10).log10())
            rows.append({"row": label, "name": name, "psnr": None if model is None else db, "picture": to_text(picture.permute(1, 2, 0).numpy())})
    return pd.DataFrame(rows)


def titok_steps() -> pd.DataFrame:
    """Pictures in the making: after so many codes of the autoregressive generator, after each step of the masked one."""
    images, rows = load_images(), []
    for name in ("titok_16", "vq_grid_64"):
        model = tokenizer(name)
        codes = torch.cat([model.encode(part) for part in images.pixels[images.train()].split(256)])
        fill = measure.usual_codes(codes)
        counts = tuple(model.num_tokens * part // 8 for part in range(1, 9))
        group, label = images.group_names.index(STEPS_GROUP), STEPS_GROUP
        made = generator(f"{name}_ar")
        drawn = measure.sample(made, torch.tensor([group]), seed=SEED)[0]
        rows += [_step(name, "ar", label, count, picture) for count, picture in zip(counts, measure.prefixes(model, drawn, fill, counts))]
        made = generator(f"{name}_maskgit")
        found = measure.step_codes(made, torch.tensor([group]), SEED, fill, temperature=best_temperature(name))
        rows += [_step(name, "maskgit", label, step, picture) for step, picture in enumerate(model.decode(found[:, 0]), 1)]
    return pd.DataFrame(rows)


def best_temperature(name: str) -> float:
    """Of the masked generator, by g-eFID, from the recorded table."""
    rows = load_recorded("visual_tokenizers", "titok_generated")
    own = rows[(rows.tokenizer == name) & (rows.kind == "maskgit")]
    return float(own.loc[own.efid.idxmin()].temperature)


def _step(name: str, kind: str, group: str, after: int, picture: torch.Tensor) -> dict:
    return {"tokenizer": name, "kind": kind, "group": group, "after": after, "picture": to_text(picture.permute(1, 2, 0).numpy())}


TABLES = [titok_speed, titok_generated, titok_stages, titok_attention, titok_board, titok_steps]


def main(names: list[str]) -> None:
    unknown = set(names) - {table.__name__ for table in TABLES}
    if unknown:
        raise SystemExit(f"unknown tables {sorted(unknown)}; there are: {', '.join(table.__name__ for table in TABLES)}")
    torch.set_num_threads(1)
    for table in TABLES:
        if not names or table.__name__ in names:
            print("recorded", record(table(), FOLDER / f"{table.__name__}.json"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
