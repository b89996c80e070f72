"""Record what SETRec and its rivals reach and cost on the emoji sessions: python recipes/record_setrec.py [recall|beta|beam|cost|shown ...]

Writes recorded/setrec_*.json and assets/setrec_live.json of the family visual_tokenizers. The variants are read from the user cache, where recipes/train_setrec.py
--keep puts them; variants that are not there are left out and named. Test users only; every interval is over users.
"""
import json
import sys
from pathlib import Path

import pandas as pd
import torch
from train_setrec import KEPT, make

from frugal import load_lm
from frugal.core.bootstrap import interval
from frugal.core.recording import read_recorded, record
from frugal.data.emoji_sessions import catalogue, make_sessions, next_probs
from frugal.models import list_weights, load_card, load_weights
from frugal.visual_tokenizers import setrec_live
from frugal.visual_tokenizers import setrec_measure as measure
from frugal.visual_tokenizers.setrec import SETRec
from frugal.visual_tokenizers.setrec_cost import BEAMS, cost_rows, lm_ways, mini_ways
from frugal.visual_tokenizers.setrec_sequence import load_sequence_ids

OUT, USERS = Path(__file__).parents[1] / "lib/frugal/visual_tokenizers/recorded", 2_000
VARIANTS = ("sem0", "sem1", "sem2", "sem4", "sem8", "inside", "tiger", "single")


def trained(variant: str):
    """(model, card) from the user cache."""
    state, card = load_weights(variant, KEPT)
    model = make(variant)
    model.load_state_dict(state)
    return model.eval(), card


def rows_of(found: dict, **more) -> list[dict]:
    """A row a kind and measure: mean with its interval, and for recall who was served (a digit a user, for paired differences)."""
    rows = []
    for name, column in found.items():
        score, kind = name.split("_")
        cell = interval({"hit": column}, lambda s: s["hit"] / len(column))
        rows.append({**more, "score": score, "kind": kind, "value": cell.value, "low": cell.low, "high": cell.high, "users": len(column),
                     "hits": "".join(str(int(h)) for h in column) if score == "recall" else ""})
    return rows


def popular_rows(sessions) -> dict:
    """The most popular items for everyone."""
    scores = torch.from_numpy(catalogue().popularity).float()
    places = torch.zeros(len(sessions.items), 3, dtype=torch.long)
    for users, history in measure.histories(sessions):
        places[users] = measure.ranks(scores.expand(len(users), -1), torch.from_numpy(sessions.targets)[users], history)
    return measure.hits(places)


def record_recall(sessions) -> None:
    """All variants; rows of weights that have not changed since the last recording are kept."""
    path, rows = OUT / "setrec_recall.json", []
    kept = read_recorded(path) if path.exists() else pd.DataFrame({"method": [], "weights": []})
    for method, found in (("ceiling", measure.ceiling_rows), ("popular", popular_rows)):
        rows += rows_of(found(sessions), method=method, n_sem=-1, beta=-1.0, weights="")
    for variant in VARIANTS:
        if variant not in list_weights(folder=KEPT):
            print("not trained:", variant, flush=True)
            continue
        model, card = trained(variant)
        same = kept[(kept.method == variant) & (kept.weights == card["sha256"][:12])]
        beta = float(card["metrics"].get("beta", -1.0))
        n_sem = model.shape.n_sem if isinstance(model, SETRec) else -1
        rows += same.to_dict("records") if len(same) else rows_of(
            measure.recall_rows(model, sessions, beta), method=variant, n_sem=n_sem, beta=beta, weights=card["sha256"][:12])
        print(variant, [(r["kind"], round(r["value"], 3)) for r in rows[-6:-3]], flush=True)
    record(pd.DataFrame(rows), path)


def record_beta(sessions) -> None:
    rows = []
    for beta, found in measure.recall_by_beta(trained("sem4")[0], sessions).items():
        rows += rows_of(found, beta=beta)
    table = pd.DataFrame(rows)
    table.loc[~table.beta.isin([0.0, 1.0]), "hits"] = ""
    record(table, OUT / "setrec_beta.json")


def record_beam(sessions) -> None:
    """Beam widths, all but the widest, on the first half of the users: wide beams are slow."""
    model, rows, sessions = trained("tiger")[0], [], make_sessions("test", USERS // 2)
    for beam in BEAMS[:-1]:
        rows += rows_of(measure.recall_rows(model, sessions, beam=beam), beam=beam)
        print("beam", beam, rows[-6]["value"], flush=True)
    record(pd.DataFrame(rows).drop(columns="hits"), OUT / "setrec_beam.json")


def record_cost(sessions) -> None:
    table = cost_rows(mini_ways(load_sequence_ids()), "small decoder", repeats=41)
    table = pd.concat([table, cost_rows(lm_ways(load_lm("smollm2-135m", progress=False)), "SmolLM2-135M", repeats=5)])
    print(table.to_string(), flush=True)
    record(table, OUT / "setrec_cost.json")


def record_shown(sessions) -> None:
    """The first two test users, not chosen ones: their newest picks, what each way puts next, and the truly likeliest. And the
    answer to the live form's first inputs."""
    rows, names, chances = [], catalogue().names, next_probs(sessions.users, sessions.items)
    for place, user in enumerate("AB"):
        items = [int(i) for i in sessions.items[place] if i >= 0]
        found = setrec_live.recommend({"history": ", ".join(names[i] for i in items), "beta": load_card("setrec")["metrics"]["beta"], "beam": 20},
                                      lambda fraction, partial=None: None)
        shown = {"picked": found["history"], **{label: found["rows"][label] for label in list(found["rows"])[::3]},
                 "truly likeliest": [names[i] for i in (-chances[place]).argsort()[:setrec_live.SHOWN]]}
        rows += [{"user": user, "row": row, "place": at, "name_shown": name} for row, held in shown.items() for at, name in enumerate(held)]
    record(pd.DataFrame(rows), OUT / "setrec_shown.json")
    first = {name: given.default() if hasattr(given, "default") and callable(given.default) else given.default
             for name, given in setrec_live.inputs().items()}
    answer = setrec_live.recommend(first, lambda fraction, partial=None: None)
    path = OUT.parent / "assets/setrec_live.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parts = {"recall": record_recall, "beta": record_beta, "beam": record_beam, "cost": record_cost, "shown": record_shown}
    chosen = sys.argv[1:] or list(parts)
    test_users = make_sessions("test", USERS)
    for part in chosen:
        parts[part](test_users)
