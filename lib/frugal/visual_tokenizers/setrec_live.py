"""The live run of SETRec: emoji that the reader has picked, and what each recommender puts next."""
import json
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import plotly.graph_objects as go
import torch

from frugal.data.emoji import load_emoji
from frugal.data.emoji_sessions import catalogue
from frugal.explore.pictures.boards import image_board
from frugal.visual_tokenizers.setrec import MAX_ITEMS, ground_items, load_setrec
from frugal.visual_tokenizers.setrec_cost import BEAMS
from frugal.visual_tokenizers.setrec_measure import BETAS
from frugal.visual_tokenizers.setrec_sequence import load_sequence_ids

SHOWN = 6
HISTORY = "fox, wolf, sushi, rice ball, bento box, dog face, raccoon"


def read_history(text: str) -> list[int]:
    """Items from emoji names (commas or new lines between them) or from the characters themselves.

    Raises ValueError for none at all, or for a word that is no emoji, naming it and what is near.
    """
    shop, found = catalogue(), []
    for word in re.split(r"[,\n]", text):
        word = word.strip()
        if word:
            found += _pasted(word) or [shop.index(word)]
    if not found:
        raise ValueError(f"the history is empty: write at least one emoji name, e.g. '{HISTORY.split(',')[0]}'")
    return found


def _pasted(word: str) -> list[int]:
    """Items of pasted emoji characters, the longest match first; [] where the word is anything else."""
    known = {_characters(entry.code_points): place for place, entry in enumerate(load_emoji(32).emoji)}
    found, rest = [], word.replace("\ufe0f", "").replace(" ", "")
    while rest:
        size = next((n for n in range(min(12, len(rest)), 0, -1) if rest[:n] in known), 0)
        if not size:
            return []
        found.append(known[rest[:size]])
        rest = rest[size:]
    return found


def _characters(code_points: str) -> str:
    return "".join(chr(int(code, 16)) for code in re.findall(r"[0-9A-Fa-f]+", code_points)).replace("\ufe0f", "")


def recommend(inputs: dict[str, Any], progress: Callable) -> dict[str, Any]:
    """What follows inputs["history"]: names by SETRec, by its CF token alone, by meaning alone, and by beam search.

    Raises ValueError for an empty history or an unknown name.
    """
    items = read_history(inputs["history"])
    history, model, names = torch.tensor([items]), load_setrec(), catalogue().names
    progress(0.2)
    tokens = model.catalogue_tokens()
    with torch.no_grad():
        answers = model.answers(tokens[history[:, -MAX_ITEMS:]])
    rows = {}
    for label, beta in ((f"SETRec, beta {inputs['beta']}", float(inputs["beta"])), ("CF token alone", 0.0), ("meaning alone", 1.0)):
        scores = ground_items(answers, tokens, beta).scatter(1, history, float("-inf"))
        rows[label] = [names[i] for i in scores[0].topk(SHOWN).indices]
    progress(0.6)
    found = load_sequence_ids().recommend(history, int(inputs["beam"]), SHOWN).items[0]
    rows[f"sequence ids, beam {inputs['beam']}"] = [names[i] for i in found if i >= 0]
    return {"history": [names[i] for i in items[-SHOWN:]], "rows": rows}


def board(result: dict[str, Any]) -> go.Figure:
    """The newest of the history, then a row of recommendations a method; the table names them all."""
    sheet, pictures, captions = load_emoji(32), [], []
    ground = sheet.on()
    for label, names in [("picked", result["history"]), *result["rows"].items()]:
        for place in range(SHOWN):
            name = names[place] if place < len(names) else ""
            pictures.append(ground[sheet.index(name)] if name else ground[0] * 0 + 255)
            captions.append(label if place == 0 else "")
    fig = image_board(pictures, captions, columns=SHOWN, title=f"After {', '.join(result['history'][-3:])}")
    said = "; ".join(f"{label}: {', '.join(names[:4])}" for label, names in result["rows"].items())
    table = {"columns": ["row", *(str(i + 1) for i in range(SHOWN))],
             "rows": [[label, *names, *[""] * (SHOWN - len(names))] for label, names in [("picked", result["history"]), *result["rows"].items()]]}
    return fig.update_layout(meta={"table": table, "summary": f"After {', '.join(result['history'])}: {said}."})


def recorded_answer() -> dict[str, Any]:
    """The answer that recipes/record_setrec.py stored for the form's first inputs."""
    path = resources.files("frugal.visual_tokenizers").joinpath("assets/setrec_live.json")
    return json.loads(path.read_text(encoding="utf-8"))


def inputs() -> dict[str, Any]:
    """The form: the history, beta and the beam."""
    from frugal.explore import choice, text
    return {"history": text("Picked so far: emoji names or characters, the newest last", HISTORY, rows=2, max_chars=400, check=read_history),
            "beta": choice(BETAS, "Weight of meaning, beta", default=0.1), "beam": choice(BEAMS, "Beam width of sequence ids", default=20)}
