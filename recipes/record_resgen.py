"""Record ResGen's rows: time over depth, what depth keeps, scores of what each sampler makes.

    python recipes/record_resgen.py [TABLE ...]

Without names all tables are written. The tables of scores need the models of recipes/train_resgen.py: the shipped
ones, and of the rivals the final.safetensors in ~/.cache/frugal/training/resgen_<kind>_<depth>.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from frugal.core.fetch import cache_dir
from frugal.core.recording import load_recorded, record
from frugal.data.emoji_images import load_images
from frugal.models.emoji_scores import efid_floor, set_scores
from frugal.visual_tokenizers import resgen_live as live
from frugal.visual_tokenizers import resgen_measure as measure
from frugal.visual_tokenizers.resgen import load_resgen, load_rvq
from train_resgen import build

FOLDER = Path(__file__).parents[1] / "lib/frugal/visual_tokenizers/recorded"
STEPS = (1, 2, 4, 8, 16, 32)
KINDS = {
    "ResGen": "resgen",
    "RQ-Transformer": "rq",
    "flat MaskGIT": "flat",
    "level by level": "softmax",
    "softmax heads": "softmax",
}


def final(name: str, depth: int) -> Path:
    """Where recipes/train_resgen.py leaves a model that is not shipped."""
    return Path(cache_dir()) / "training" / f"resgen_{KINDS[name]}_{depth}" / "final.safetensors"


def trained(name: str, depth: int = 8):
    """The model behind a sampler."""
    kind = KINDS[name]
    if kind == "resgen" and depth == 8:
        return load_resgen()
    model = build(kind, depth)
    model.load_state_dict(load_file(final(name, depth)))
    return model.requires_grad_(False).eval()


def there(name: str) -> bool:
    """Whether the sampler's model is trained; says so if not."""
    found = name == "ResGen" or final(name, 8).exists()
    if not found:
        print(f"{name} is left out: train {final(name, 8).parent.name} first", flush=True)
    return found


def best(name: str) -> dict[str, float]:
    """Temperatures of a sampler: ResGen's from the library, a rival's from its recorded table."""
    if name == "ResGen":
        return measure.CHOSEN
    rows = load_recorded("visual_tokenizers", "resgen_noise_rivals")
    row = rows.loc[rows[rows["sampler"] == name]["efid"].idxmin()]
    return {key: float(row[key]) for key in ("temperature", "confidence") if pd.notna(row[key])}


def scored(name: str, depth: int = 8, **options) -> dict:
    """Scores of one picture for each emoji, of its group."""
    groups = load_images().groups
    made = measure.pictures(
        load_rvq(),
        name,
        trained(name, depth),
        groups,
        **{**({} if "temperature" in options else best(name)), **options},
    )
    row = {
        "sampler": name,
        "depth": depth,
        "passes": measure.forward_passes(name, depth, options.get("num_steps", measure.STEPS)),
        **set_scores(made, groups),
    }
    print(row, flush=True)
    return row


def resgen_speed() -> pd.DataFrame:
    return pd.concat([measure.speed_rows(), measure.speed_rows(batch=16, repeats=5)], ignore_index=True)


def resgen_depth() -> pd.DataFrame:
    return measure.depth_rows(load_rvq())


def resgen_quality() -> pd.DataFrame:
    """ResGen over steps and depth, its rivals at depth 8, and what the tokenizer makes of the real pictures."""
    images, tokenizer = load_images(), load_rvq()
    rows = [scored("ResGen", num_steps=steps) for steps in STEPS]
    rows.append(scored("ResGen", 4))
    rows += [scored(name) for name in measure.SAMPLERS if name != "ResGen" and there(name)]
    for depth in (2, 4, 8):
        decoded = torch.cat(
            [tokenizer.decode(tokenizer.encode(part)[..., :depth]) for part in images.pixels.split(256)]
        )
        rows.append(
            {"sampler": "real pictures, decoded", "depth": depth, "passes": 0, **set_scores(decoded, images.groups)}
        )
    rows.append({"sampler": "floor", "depth": 0, "passes": 0, "efid": efid_floor()})
    return pd.DataFrame(rows)


def noise_rows(grids: dict[str, list[dict]]) -> pd.DataFrame:
    """Scores of each sampler at each setting, 8 steps, with other random numbers than the rows that are shown."""
    return pd.DataFrame(
        [
            {**setting, **scored(name, seed=1, **setting)}
            for name, grid in grids.items()
            if there(name)
            for setting in grid
        ]
    )


def resgen_noise() -> pd.DataFrame:
    """ResGen's temperatures: of the drawn vectors, and of the order in which slots are filled."""
    return noise_rows(
        {"ResGen": [{"temperature": t, "confidence": c} for t in (0.6, 0.8, 1.0) for c in (0.0, 2.0, 8.0, 32.0)]}
    )


def resgen_noise_rivals() -> pd.DataFrame:
    """The rivals' temperatures, so that each is shown at its best."""
    both = [{"temperature": t, "confidence": 8.0} for t in (0.8, 1.0)]
    return noise_rows(
        {
            "RQ-Transformer": [{"temperature": t} for t in (0.7, 0.85, 1.0)],
            "flat MaskGIT": [{"temperature": t} for t in (1.0, 3.0)],
            "level by level": both,
            "softmax heads": both,
        }
    )


def resgen_board() -> pd.DataFrame:
    """Two pictures, watched while they are made."""
    return pd.DataFrame(
        [
            row
            for group, seed, steps in live.EXAMPLES
            for row in live.to_rows(group, seed, live.fill(group, steps, seed))
        ]
    )


TABLES = [resgen_speed, resgen_depth, resgen_noise, resgen_noise_rivals, resgen_quality, resgen_board]


def main(names: list[str]) -> None:
    unknown = set(names) - {table.__name__ for table in TABLES}
    if unknown:
        raise SystemExit(f"no table {sorted(unknown)}; there are: {', '.join(table.__name__ for table in TABLES)}")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for table in TABLES:
        if not names or table.__name__ in names:
            print("wrote", record(table(), FOLDER / f"{table.__name__}.json").name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
