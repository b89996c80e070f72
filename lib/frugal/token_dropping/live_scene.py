"""The live run of notebook 02: the reader's own scene and question, answered with all visual tokens and with a few."""
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import plotly.graph_objects as go
import torch

from frugal.data.scenes import NAMES, PLACES, Scene, compose, images_of
from frugal.explore.theme import escape
from frugal.models.mini_vlm import Grid
from frugal.token_dropping.answering import MAX_NAMES
from frugal.token_dropping.baselines import OverviewOnly, RandomDrop, SpatialPool, UniformGrid
from frugal.token_dropping.figures_keep import arrange, kept_figure, overview_of, png
from frugal.token_dropping.hired import HiRED, HiREDReleased
from frugal.token_dropping.keeping import Kept, keep, read
from frugal.token_dropping.prumerge import PruMerge, PruMergePlus
from frugal.token_dropping.workloads import model

METHODS = {
    cls.name: cls
    for cls in (HiRED, HiREDReleased, RandomDrop, UniformGrid, OverviewOnly, SpatialPool, PruMerge, PruMergePlus)
}
BUDGETS = (0.05, 0.1, 0.2, 0.4, 0.6, 1.0)
SIDES = (12, 16, 20, 24, 28, 36)
OTHERS = "fox bottom-right 24\nlemon left 18\nbus top-right 20"
QUESTION = "what is at top-left ?"


def read_objects(text: str) -> list[tuple[str, str, int]]:
    """Objects from lines "name place side". ValueError names the line that is none."""
    found = []
    for line in text.splitlines():
        if line.strip():
            parts = line.split()
            if len(parts) != 3 or not parts[2].isdigit():
                raise ValueError(
                    f"{line.strip()!r}: write one object a line, as name, place and side in px, e.g. 'fox top-left 20'; "
                    f"places are {', '.join(PLACES)}")
            found.append((parts[0], parts[1], int(parts[2])))
    return found


def check_scene(text: str) -> None:
    """Raises ValueError when the lines are no scene."""
    compose(read_objects(text))


def check_question(text: str) -> None:
    """Raises ValueError for words the model does not know, or for more than it takes."""
    ids = model().vocab.encode(text)
    if not 1 <= len(ids) <= 12:
        raise ValueError(f"a question of {len(ids)} words; the model takes 1 to 12, e.g. '{QUESTION}'")


def answer(vlm, kept: Kept, question: str) -> list[str]:
    """Greedy words until the end token, from the kept tokens of one scene."""
    cache, ids, words = read(vlm, kept, vlm.grid), vlm.vocab.encode(question), []
    while len(words) < MAX_NAMES:
        word = int(vlm.lm(torch.tensor([ids]), cache, last_only=True)[0, -1].argmax())
        if word == vlm.vocab.eos_id:
            break
        words.append(vlm.vocab.token_str(word))
        ids = [word]
    return words


def ask_twice(inputs: dict[str, Any], progress: Callable) -> dict[str, Any]:
    """Composes the scene, keeps inputs["budget"] of its tokens by inputs["method"], and asks both ways.

    Raises ValueError for a scene that does not fit, an unknown name or word, or a budget that the method cannot meet.
    """
    scene = compose([(inputs["name"], inputs["place"], int(inputs["side"])), *read_objects(inputs["others"])])
    check_question(inputs["question"])
    vlm, method = model(), METHODS[inputs["method"]]()
    progress(0.1)
    tokens = vlm.see(images_of([scene]))
    progress(0.4)
    kept = keep(tokens, method, float(inputs["budget"]))
    found = {
        "image": png(scene.image), "overview": png(overview_of(scene.image)), "names": scene.names,
        "index": kept.index[0].tolist(), "method": method.name,
        "grid": [tokens.grid.tile_rows, tokens.grid.tile_cols, tokens.grid.patch_rows,
                 tokens.grid.patch_cols], "question": inputs["question"], "truth": truth(scene, inputs["question"]),
        "few": answer(vlm, kept, inputs["question"])
    }
    progress(0.7)
    return {**found, "all": answer(vlm, keep(tokens), inputs["question"])}


def truth(scene: Scene, question: str) -> str:
    """The right answer to a question of one of the four kinds; "" for any other."""
    words = question.split()
    if words[:3] == ["is", "there", "a"] and len(words) == 5:
        return "yes" if words[3] in scene.names else "no"
    if words[:3] == ["what", "is", "at"] and len(words) == 5 and words[3] in PLACES:
        return scene.at(words[3])
    if words[:2] == ["how", "many"] and len(words) == 4:
        return ["zero", "one", "two", "three", "four"][min(scene.count(words[2]), 4)]
    return " ".join(scene.names) if words[:1] == ["describe"] else ""


def two_answers(result: dict[str, Any]) -> go.Figure:
    """The scene with what was kept, and both answers below it."""
    grid, kept = Grid(*result["grid"]), torch.tensor(result["index"])
    few, full = " ".join(result["few"]) or "(nothing)", " ".join(result["all"]) or "(nothing)"
    fig = kept_figure(result["image"], result["overview"], kept, grid,
                      f"{len(kept)} of {grid.num_tokens} tokens say {few!r}, all say {full!r}")
    arrange(fig, {"tiles: kept patches": (0, 0.4), "overview: kept patches": (0.44, 0.2)}, 460)
    right = f"; right: {result['truth']}" if result["truth"] else ""
    fig.add_annotation(text=escape(f"{result['question']}  {result['method']}: {few}; full: {full}{right}"), x=0,
                       y=-0.02, xref="paper", yref="paper", showarrow=False, xanchor="left", yanchor="top",
                       font={"size": 14})
    return fig.update_layout(
        meta={
            "table": {"columns": ["tokens", "answer"], "rows": [[result["method"], few], ["all", full]]},
            "summary": f"{result['question']} With {len(kept)} of {grid.num_tokens} tokens ({result['method']}): {few}; "
            f"with all: {full}{right}."
        })


def recorded_answer() -> dict[str, Any]:
    """The answer that recipes/record_token_dropping.py stored for the form's first inputs."""
    text = resources.files("frugal.token_dropping").joinpath("assets/live_scene.json").read_text(encoding="utf-8")
    return json.loads(text)


def inputs() -> dict[str, Any]:
    """The form: one object from lists, the others as text, a question, and who keeps how much."""
    from frugal.explore import choice, text
    return {
        "name": choice(sorted(NAMES), "Object",
                       default="trumpet"), "place": choice(PLACES, "Place"), "side": choice(SIDES, "Side", "px", 16),
        "others": text("Other objects: name, place, side a line", OTHERS, rows=4, required=False, max_chars=400,
                       check=check_scene), "question": text("Question", QUESTION, rows=1, max_chars=120,
                                                            check=check_question),
        "method": choice(list(METHODS), "Kept by"), "budget": choice(BUDGETS, "Tokens kept", default=0.2)
    }
