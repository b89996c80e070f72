"""The family's figures by name, ready to draw: what `frugal reproduce` writes and notebook 04 shows."""
from collections.abc import Callable
from typing import Any

import pandas as pd

from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore
from frugal.visual_tokenizers import figures_shared as shared
from frugal.visual_tokenizers.joined import modules


def reconstruct_rows() -> pd.DataFrame:
    """The recorded sweep of all picture tokenizers; attrs["mean_picture"] holds the scores of the mean picture."""
    rows = load_recorded("visual_tokenizers", "reconstruct")
    floor = load_recorded("visual_tokenizers", "floors").set_index("floor").loc["mean picture"]
    rows.attrs["mean_picture"] = {"psnr": floor.psnr_held_out, "elpips": floor.elpips, "r_efid": floor.r_efid}
    return rows


def declared(rows: pd.DataFrame) -> dict[str, Any]:
    """The declaration that rebuilds these rows."""
    return {"family": "visual_tokenizers", "sweeps": [
        {"workload": workload, "methods": [method], "budgets": sorted(part.budget.unique().tolist()),
         "seeds": sorted(part.seed.unique().tolist())}
        for (workload, method), part in rows.groupby(["workload", "method"], sort=False)]}


def rate_distortion() -> Explorer:
    rows = reconstruct_rows()
    ran = [name for name in shared.LABELS if name in set(rows[rows.error == ""].method)]
    first = [name for name in ("titok", *ran) if name in ran]
    return explore(shared.rate_distortion, rows, score=choice(list(shared.SCORES), "Score", texts=["PSNR", "eLPIPS", "r-eFID"]),
                   against=choice(list(shared.AXES), "Against"), sweep=declared(rows),
                   picked=choice(list(dict.fromkeys(first)), "Tokenizer", texts=[shared.LABELS[n] for n in dict.fromkeys(first)]))


def set_scores() -> Explorer:
    return explore(shared.set_scores, load_recorded("visual_tokenizers", "sets"),
                   score=choice(["efid", "copy_rate", "precision", "recall", "label_accuracy"], "Score",
                                texts=["eFID", "copy rate", "precision", "recall", "label accuracy"]))


def codebook_use() -> Explorer:
    rows = load_recorded("visual_tokenizers", "codebooks")
    return explore(shared.codebook_use, rows, tokenizer=choice(list(rows.tokenizer), "Tokenizer"))


def one_picture() -> Explorer:
    rows = load_recorded("visual_tokenizers", "board")
    return explore(shared.one_picture, rows, name=choice(list(dict.fromkeys(rows["name"])), "Emoji (held out)"),
                   budget=choice(sorted(set(rows.budget)), "Tokens at most", default=16))


FIGURES: dict[str, Callable[[], Explorer]] = {make.__name__: make for make in (one_picture, set_scores, rate_distortion, codebook_use)}
for module in modules("figures"):
    FIGURES |= module.FIGURES
    globals().update(module.FIGURES)
