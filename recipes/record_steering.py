"""Record what the steering figures and claims of family 02 show: `python recipes/record_steering.py [table ...]`.

Writes lib/frugal/token_dropping/recorded/<table>.json from the committed mini-VLM. About ten minutes on one free core.
Grids are drawn on one set of scenes; the strengths chosen there are judged on another ("steering_final"), so that
choosing the best cannot make an effect. Tables: see TABLES at the end; steering_final reads the grids.
"""
import sys
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from frugal.core.recording import load_recorded, record
from frugal.data.scene_questions import CAPTION_PROMPT
from frugal.models.mini_vlm import load_mini_vlm
from frugal.token_dropping import rank_trace
from frugal.token_dropping import steering_measure as measure
from frugal.token_dropping.hallucination import ABSENT, count_answers, count_captions, late_hallucination, pope
from frugal.token_dropping.paint import Pai, Paint, head_visual_sensitivity
from frugal.token_dropping.steering import Greedy, MassRecorder, decode
from frugal.token_dropping.steering_measure import MAX_NAMES, WORDS, batches, prompt_ids
from frugal.token_dropping.vista import Vista

FOLDER = Path(__file__).parents[1] / "lib/frugal/token_dropping/recorded"
GRID_SCENES, FINAL_SCENES, POPE_SCENES, TRACE_SCENES, HEAD_SCENES = 96, 384, 96, 192, 64
FINAL_FIRST, HEAD_FIRST = 10_000, 20_000                   # the sets of scenes do not overlap
ALPHAS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.5)
LAMBDAS = (0.0, 0.01, 0.03, 0.08, 0.17, 0.4)
FEW_LAMBDAS = (0.0, 0.03, 0.17)                             # of the variants
SLA = (0.0, 0.1, 0.3, 0.5)
BETA = 3 / 7                                               # beta as a share of alpha: 0.3 / 0.7, the paper's setting
FORCED = ("PAINT", "random tokens", "PAI", "VISTA", "random vector")
RECALL_LOSS = 0.01                                         # a strength may cost this much recall, to be chosen


def sensitivity() -> torch.Tensor:
    """The recorded head sensitivities, (layers, heads)."""
    rows = load_recorded("token_dropping", "paint_heads")
    return torch.tensor(rows.pivot(index="layer", columns="head", values="mass").to_numpy(), dtype=torch.float32)


def paint_methods(alpha: float) -> dict[str, Paint]:
    """PAINT and its controls at one strength; beta keeps its ratio, so that 0 is off."""
    both, heads = {"alpha": alpha, "beta": BETA * alpha}, sensitivity()
    return {"PAINT": Paint(**both), "boost only": Paint(**both, gamma=1), "random tokens": Paint(**both, gamma=1, target="random"),
            "all tokens": Pai(alpha=alpha, gamma=1), "PAI": Pai(alpha=alpha),
            "heads in proportion": Paint(**both, gamma=1, head_rule="proportional", sensitivity=heads),
            "top half of heads": Paint(**both, gamma=1, head_rule="top_half", sensitivity=heads)}


def vista_variants() -> dict[tuple[str, float], Vista]:
    """The vector alone in other ways: a random one, from a blank image, at another site, on the text alone."""
    kinds = {"random vector": (LAMBDAS, {"vector": "random"}), "blank image": (FEW_LAMBDAS, {"negative": "blank"}),
             "residual": (FEW_LAMBDAS, {"site": "residual"}), "text only": (LAMBDAS, {"reach": "text"})}
    return {(name, s): Vista(strength=s, alpha=0.0, **options) for name, (grid, options) in kinds.items() for s in grid}


def figures(said: dict[str, list], scenes, keys: dict[str, dict]) -> pd.DataFrame:
    """One row a method: its keys, CHAIR figures with intervals, and the paired change against greedy."""
    there, rows = [scene.names for scene in scenes], []
    plain = count_captions(said["greedy"], there)
    for name, captions in said.items():
        counts = count_captions(captions, there)
        rows.append({**keys[name], "scenes": len(scenes), **measure.figure_columns(counts, plain)})
    return pd.DataFrame(rows)


def run(vlm, scenes, methods: dict[str, object], keys: dict[str, dict]) -> pd.DataFrame:
    said = measure.captions(vlm, scenes, {"greedy": Greedy(), **methods})
    return figures(said, scenes, {"greedy": dict.fromkeys(next(iter(keys.values())), 0.0) | {"method": "greedy"}, **keys})


def paint_heads(vlm) -> pd.DataFrame:
    """Attention mass of every head on the picture, over 64 scenes and all generated positions."""
    seen = vlm.see(measure.images_of(measure.held_out(HEAD_SCENES, HEAD_FIRST)))
    found = head_visual_sensitivity(vlm, seen, prompt_ids([CAPTION_PROMPT] * HEAD_SCENES), MAX_NAMES, WORDS.eos_id)
    return pd.DataFrame([(layer, head, float(found[layer, head])) for layer in range(len(found)) for head in range(found.shape[1])],
                        columns=["layer", "head", "mass"])


def paint_alpha(vlm) -> pd.DataFrame:
    """CHAIR, recall and length against alpha, for PAINT and its controls."""
    methods = {f"{name} {alpha}": method for alpha in ALPHAS for name, method in paint_methods(alpha).items()}
    keys = {f"{name} {alpha}": {"method": name, "alpha": alpha} for alpha in ALPHAS for name in paint_methods(alpha)}
    return run(vlm, measure.held_out(GRID_SCENES), methods, keys)


def paint_mass(vlm) -> pd.DataFrame:
    """Mass on the picture by layer and generated position, before and after the boost; heads averaged."""
    rows = []
    for part, seen, prefix in batches(vlm, measure.held_out(96, FINAL_FIRST)):
        prompt = prompt_ids([CAPTION_PROMPT] * len(part))
        for stage, method in (("before", Greedy()), ("after", Paint(gamma=1))):
            watch, running = MassRecorder(seen.embeds.shape[1], vlm.lm.config.num_layers), []
            decode(method.begin(vlm, seen, prompt, prefix, watch), prompt, MAX_NAMES, WORDS.eos_id,
                   on_step=lambda step: running.append(step.running))
            mass = watch.mass().mean(-1)                                                    # (steps, L, B)
            rows += [(stage, layer, step + 1, float(mass[step, layer, b])) for step in range(min(6, len(mass)))
                     for layer in range(mass.shape[1]) for b in running[step].nonzero().flatten().tolist()]
    table = pd.DataFrame(rows, columns=["stage", "layer", "position", "mass"])
    return table.groupby(["stage", "layer", "position"], sort=False)["mass"].agg(["mean", "size"]).reset_index().rename(
        columns={"mean": "mass", "size": "captions"})


@lru_cache
def shown_scenes(vlm) -> list[int]:
    """Seeds (from the held-out start) of six scenes to look at: four where greedy decoding invents, two where it does not."""
    scenes = measure.held_out(96, FINAL_FIRST)
    said = measure.captions(vlm, scenes, {"greedy": Greedy()})["greedy"]
    wrong = [i for i, names in enumerate(said) if set(names) - set(scenes[i].names)]
    right = [i for i in range(len(scenes)) if i not in wrong]
    return [FINAL_FIRST + i for i in wrong[:4] + right[:6 - len(wrong[:4])]]


def paint_sets(vlm) -> pd.DataFrame:
    """Local and summary tokens of the scenes shown."""
    rows = []
    for first in shown_scenes(vlm):
        sets = Paint().sets(vlm.see(measure.images_of(measure.held_out(1, first))))
        rows += [(first, name, token) for name in ("local", "summary") for token in getattr(sets, name)[0].nonzero().flatten().tolist()]
    return pd.DataFrame(rows, columns=["scene", "set", "token"])


def vista_grid(vlm) -> pd.DataFrame:
    """CHAIR, recall and length over lambda and alpha."""
    grid = [(strength, alpha) for strength in LAMBDAS for alpha in SLA]
    methods = {f"{s} {a}": Vista(strength=s, alpha=a) for s, a in grid}
    return run(vlm, measure.held_out(GRID_SCENES), methods, {f"{s} {a}": {"method": "VISTA", "strength": s, "alpha": a} for s, a in grid})


def vista_controls(vlm) -> pd.DataFrame:
    """The vector alone (the grid's rows without early logits) beside its variants and control, over lambda."""
    methods = {f"{name} {s}": method for (name, s), method in vista_variants().items()}
    keys = {f"{name} {s}": {"method": name, "strength": s} for name, s in vista_variants()}
    grid = load_recorded("token_dropping", "vista_grid")
    own = grid[(grid.alpha == 0) & (grid.method == "VISTA")].drop(columns="alpha").assign(method="vector")
    return pd.concat([own, run(vlm, measure.held_out(GRID_SCENES), methods, keys)], ignore_index=True)


def chosen(rows: pd.DataFrame, **where) -> pd.Series:
    """The row of least CHAIR_I whose recall is at most RECALL_LOSS below greedy's."""
    for name, value in where.items():
        rows = rows[rows[name] == value]
    allowed = rows[rows["recall_change"] >= -RECALL_LOSS]
    return allowed.loc[allowed["chair_i"].idxmin()]


def final_methods() -> dict[str, object]:
    """What is judged on fresh scenes: the paper's settings, and the strengths that the grids chose."""
    paint, grid, controls = (load_recorded("token_dropping", name) for name in ("paint_alpha", "vista_grid", "vista_controls"))
    alpha, pai = (float(chosen(paint, method=name).alpha) for name in ("PAINT", "PAI"))
    both, vector = chosen(grid, method="VISTA"), float(chosen(grid[grid.alpha == 0], method="VISTA").strength)
    sla = float(chosen(grid[grid.strength == 0], method="VISTA").alpha)
    drawn = float(chosen(controls, method="random vector").strength)
    return {"PAINT, paper's setting": Paint(), "PAINT": Paint(alpha=alpha, beta=BETA * alpha), "contrast only": Paint(alpha=0, beta=0),
            "boost only": Paint(alpha=alpha, beta=BETA * alpha, gamma=1),
            "random tokens": Paint(alpha=alpha, beta=BETA * alpha, gamma=1, target="random"), "PAI": Pai(alpha=pai),
            "VISTA, paper's setting": Vista(), "VISTA": Vista(strength=float(both.strength), alpha=float(both.alpha)),
            "vector only": Vista(strength=vector, alpha=0), "early logits only": Vista(strength=0, alpha=sla),
            "random vector": Vista(strength=max(vector, drawn), alpha=0, vector="random")}


def settings(method) -> dict[str, float]:
    return {"alpha": float(method.alpha), "strength": float(getattr(method, "strength", 0.0))}


@lru_cache
def final_captions(vlm, forced: int | None) -> dict[str, list[list[str]]]:
    """What every method says about the fresh scenes; at forced length only those of FORCED."""
    methods = {name: method for name, method in final_methods().items() if forced is None or name in FORCED}
    return measure.captions(vlm, measure.held_out(FINAL_SCENES, FINAL_FIRST), {"greedy": Greedy(), **methods}, forced=forced)


def steering_final(vlm) -> pd.DataFrame:
    """All methods on fresh scenes, free and with forced length."""
    methods = {"greedy": Paint(alpha=0, beta=0), **final_methods()}
    keys = {name: {"method": name, **settings(method)} for name, method in methods.items()}
    return pd.concat([figures(final_captions(vlm, forced), measure.held_out(FINAL_SCENES, FINAL_FIRST), keys).assign(mode=mode)
                      for mode, forced in (("free", None), ("forced", 2))], ignore_index=True)


def steering_late(vlm) -> pd.DataFrame:
    """CHAIR_I by place in the caption, free and forced length."""
    there, tables = [scene.names for scene in measure.held_out(FINAL_SCENES, FINAL_FIRST)], []
    for mode, forced in (("free", None), ("forced", 2)):
        said = final_captions(vlm, forced)
        tables += [late_hallucination(said[name], there).assign(method=name, mode=mode) for name in ("greedy", "PAINT", "VISTA")]
    return pd.concat(tables, ignore_index=True)


def steering_pope(vlm) -> pd.DataFrame:
    """Yes/no answers by kind of absent name; VISTA at the paper's strength for short answers."""
    scenes = [s for s in measure.held_out(2 * POPE_SCENES, FINAL_FIRST) if len(set(s.names)) >= 3][:POPE_SCENES]
    final, asked = final_methods(), measure.yes_no_questions(scenes)
    methods = {"greedy": Greedy(), "PAINT": final["PAINT"], "PAI": final["PAI"], "VISTA": Vista(strength=0.01, alpha=final["VISTA"].alpha)}
    found, rows = measure.answers(vlm, scenes, methods, asked), []
    for name, kinds in found.items():
        for kind in ABSENT:
            said = [a + b for a, b in zip(kinds["present"], kinds[kind])]
            counts = count_answers(said, [[True] * 3 + [False] * 3] * len(scenes))
            row = {"method": name, "kind": kind, "scenes": len(scenes)}
            for figure, value in pope(counts).items():
                row |= {figure: value.value, f"{figure}_low": value.low, f"{figure}_high": value.high}
            rows.append(row)
    return pd.DataFrame(rows)


def steering_price(vlm) -> pd.DataFrame:
    """Extra work of each method, counted and timed."""
    methods = {"greedy": Greedy(), "PAINT": Paint(), "boost only": Paint(gamma=1), "contrast only": Paint(alpha=0, beta=0),
               "VISTA": Vista(), "vector only": Vista(alpha=0), "early logits only": Vista(strength=0)}
    return measure.price(vlm, measure.held_out(24, FINAL_FIRST), methods)


@lru_cache
def traced(vlm) -> pd.DataFrame:
    """Rank rows of greedy captions."""
    tables, done = [], 0
    for part, seen, prefix in batches(vlm, measure.held_out(TRACE_SCENES, FINAL_FIRST)):
        found = rank_trace.trace(vlm, seen, prompt_ids([CAPTION_PROMPT] * len(part)), prefix=prefix)
        tables.append(rank_trace.rank_rows(found, [WORDS.encode(" ".join(scene.names)) for scene in part], done))
        done += len(part)
    return pd.concat(tables, ignore_index=True)


def vista_ranks(vlm) -> pd.DataFrame:
    """Mean ranks by step and by layer."""
    rows = traced(vlm)
    return pd.concat([rank_trace.mean_ranks(rows, by).rename(columns={by: "at"}).assign(by=by) for by in ("step", "layer")],
                     ignore_index=True)


def vista_findings(vlm) -> pd.DataFrame:
    """The three findings as effects with intervals."""
    rows, out = traced(vlm), []
    for name in ("hidden true", "decoded true", "true, still to come", "hallucinated"):
        out.append(("rank loss", name, rank_trace.rank_loss(rows, name), -1))
    for name in ("true, still to come", "hidden true", "hallucinated"):
        out.append(("early peak", name, *rank_trace.early_peak(rows, name)))
    for name in ("hidden true", "true, still to come", "hallucinated"):
        out.append(("above absent", name, rank_trace.hidden_above_absent(rows, name), -1))
    return pd.DataFrame([(finding, name, f.value, f.low, f.high, layer) for finding, name, f, layer in out],
                        columns=["finding", "set", "value", "low", "high", "layer"])


def vista_nearly(vlm) -> pd.DataFrame:
    """The five likeliest words at every step, plain and steered, for the scenes shown."""
    rows, steered = [], final_methods()["VISTA"]
    for first in shown_scenes(vlm):
        (scene,) = measure.held_out(1, first)
        seen = vlm.see(measure.images_of([scene]))
        for name, method in (("greedy", Greedy()), ("VISTA", steered)):
            found = rank_trace.trace(vlm, seen, prompt_ids([CAPTION_PROMPT]), method)
            for step in range(len(found.said[0]) + 1 if len(found.said[0]) < MAX_NAMES else MAX_NAMES):
                top = found.chance[step, 0].topk(5)
                rows += [(first, name, step + 1, place + 1, WORDS.token_str(token), round(float(chance), 4))
                         for place, (token, chance) in enumerate(zip(top.indices.tolist(), top.values))]
    return pd.DataFrame(rows, columns=["scene", "method", "step", "place", "word", "chance"])


def words_of(vlm, methods: dict[str, dict[float, object]]) -> pd.DataFrame:
    """Captions of four scenes shown, word by word, over each method's strengths; free, and with room to err (forced length)."""
    rows, shown = [], shown_scenes(vlm)[:4]
    scenes = [measure.held_out(1, first)[0] for first in shown]
    flat = {f"{name} {strength}": method for name, grid in methods.items() for strength, method in grid.items()}
    for mode, forced in (("free", None), ("forced", 2)):
        said = measure.captions(vlm, scenes, {"greedy": Greedy(), **flat}, forced=forced)
        rows += [(first, mode, name, strength, " ".join(said[f"{name} {strength}"][i]), " ".join(said["greedy"][i]),
                  " ".join(scenes[i].names)) for i, first in enumerate(shown) for name, grid in methods.items() for strength in grid]
    return pd.DataFrame(rows, columns=["scene", "mode", "method", "strength", "said", "greedy", "truth"])


def paint_words(vlm) -> pd.DataFrame:
    return words_of(vlm, {name: {a: paint_methods(a)[name] for a in ALPHAS} for name in ("PAINT", "random tokens", "PAI")})


def vista_words(vlm) -> pd.DataFrame:
    own = {"VISTA": {}, "vector": {"alpha": 0.0}, "random vector": {"alpha": 0.0, "vector": "random"}}
    return words_of(vlm, {name: {s: Vista(strength=s, **options) for s in LAMBDAS} for name, options in own.items()})


TABLES = [paint_heads, paint_alpha, paint_mass, paint_sets, vista_grid, vista_controls, steering_final, steering_late, steering_pope,
          steering_price, vista_ranks, vista_findings, vista_nearly, paint_words, vista_words]


def main(names: list[str]) -> None:
    unknown = set(names) - {table.__name__ for table in TABLES}
    if unknown:
        raise SystemExit(f"no table {sorted(unknown)}; there are: {', '.join(table.__name__ for table in TABLES)}")
    torch.set_flush_denormal(True)
    vlm = load_mini_vlm()
    for table in tqdm([t for t in TABLES if not names or t.__name__ in names], desc="tables", disable=None):
        print("wrote", record(table(vlm), FOLDER / f"{table.__name__}.json").name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
