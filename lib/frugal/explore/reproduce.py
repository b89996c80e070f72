"""`frugal reproduce KEY --out DIR`: one claim or figure, ready for a blog post, with data, recipe and citations.

Figures are what a family registers in `frugal/<family>/figures.py` as `FIGURES: dict[str, callable]`, each giving a
plotly figure or an explorer; claims are `CLAIMS` of `frugal/<family>/claims.py`. A claim is drawn as the paper's number
beside what was measured and projected here. Written: KEY.png, KEY.svg, KEY.csv, KEY.json (data, digest and summary),
KEY.sweep.json (the declaration that rebuilds the rows), and citation.bib (the papers' BibTeX and ours).
"""

import importlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from frugal.core.papers import FAMILIES, Paper, papers

from frugal.core.files import write_atomically

from .export import NoRenderer, save
from .theme import blank, escape

PICTURES = (".png", ".svg")


@dataclass(frozen=True)
class Entry:
    """Something that can be reproduced. make: gives the figure or explorer; sweep: what rebuilds its rows."""

    key: str
    kind: str  # "figure" or "claim"
    family: str
    make: Callable[[], Any] = field(repr=False)
    papers: tuple[Paper, ...] = ()
    sweep: Any = None


def known() -> dict[str, Entry]:
    """Every figure and claim of every built family, by key. A figure and a claim of one key: the claim is `claim:KEY`."""
    found: dict[str, Entry] = {}
    for family in FAMILIES:
        figures, claims = _module(family, "figures"), _module(family, "claims")
        for key, make in (getattr(figures, "FIGURES", None) or {}).items():
            found[key] = Entry(key, "figure", family, make if callable(make) else lambda made=make: made)
        for claim in getattr(claims, "CLAIMS", None) or []:
            key = f"claim:{claim.key}" if claim.key in found else claim.key
            found[key] = Entry(key, "claim", family, lambda claim=claim: claim_figure(claim), (claim.paper,),
                               getattr(claim, "sweep", None))  # fmt: skip
    return found


def reproduce(key: str, out: Path) -> str:
    """Write one figure or claim to the folder `out`; gives a sentence on what was written.

    ValueError: the key is not known (the known ones are listed). NoRenderer, after everything else was written:
    nothing here can draw a PNG or SVG; the message says what to install.
    """
    entries = known()
    if key not in entries:
        near = get_close_matches(key, entries, n=3)
        raise ValueError(f"no claim or figure {key!r}{f'; did you mean {near}?' if near else ''}; known: {', '.join(entries) or 'none'}")
    entry, out = entries[key], Path(out)
    made = entry.make()
    out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "-", key)
    sweep = entry.sweep if isinstance(made, go.Figure) else made.payload["sweep"] or declared_by(made.rows)
    written = [save(made, out / f"{name}{kind}", **({"sweep": sweep} if kind == ".json" else {})).name for kind in (".csv", ".json")]
    written.append(_write(out / f"{name}.sweep.json", json.dumps(declaration(entry, sweep), indent=1)))
    written.append(_write(out / "citation.bib", "\n\n".join([*(p.bibtex() for p in cited(entry, made)), our_citation()]) + "\n"))
    no_picture = None
    for kind in PICTURES:
        try:
            written.append(save(made, out / f"{name}{kind}").name)
        except NoRenderer as error:
            no_picture = error
    said = f"{entry.kind} {key} in {out}: {', '.join(written)}"
    if no_picture is not None:
        raise NoRenderer(f"{said}; but no picture: {no_picture}")
    return said


def declared_by(rows: Any) -> list[dict[str, Any]] | dict[str, Any] | None:
    """The sweep (or one a workload) that gives these rows, read off their own columns; None for rows of another kind."""
    needed = ["family", "method", "budget", "seed", "workload"]
    if not isinstance(rows, pd.DataFrame) or not set(needed) <= set(rows.columns):
        return None
    found = []
    for (family, workload), own in rows.groupby(["family", "workload"], sort=False):
        values = {name: list(dict.fromkeys(own[name].tolist())) for name in ("method", "budget", "seed")}
        found.append({"family": family, "methods": values["method"], "budgets": values["budget"], "workload": workload,
                      "seeds": values["seed"]})  # fmt: skip
    return found[0] if len(found) == 1 else found


def declaration(entry: Entry, sweep: Any) -> dict[str, Any]:
    """What to run to get the rows again."""
    from .recorded import describe_sweep

    how = f"frugal reproduce {entry.key} --out DIR"
    if sweep is None:
        return {"key": entry.key, "family": entry.family, "sweep": None, "draw": how,
                "note": "this one is computed from the library directly, without a sweep"}  # fmt: skip
    return {"key": entry.key, "family": entry.family, "sweep": describe_sweep(sweep), "draw": how,
            "rows": "frugal.Sweep(**sweep).run() (each of a list), or: frugal sweep FAMILY --methods ... --budgets ... --workload NAME"}  # fmt: skip


def cited(entry: Entry, made: Any) -> list[Paper]:
    """The papers behind it: the claim's, or those of the methods in the figure's rows, or the family's built ones."""
    chosen = list(entry.papers)
    rows = getattr(made, "rows", None)
    if not chosen and isinstance(rows, pd.DataFrame) and "method" in rows:
        methods = {method.name: method for method in importlib.import_module(f"frugal.{entry.family}").ALL}
        chosen = [methods[name].paper for name in dict.fromkeys(rows["method"]) if name in methods]
    chosen = chosen or [paper for paper in papers(entry.family) if paper.built]
    return [paper for paper in {paper.key: paper for paper in chosen}.values() if paper.arxiv]


def claim_figure(claim: Any) -> go.Figure:
    """The paper's number beside ours: bars for paper, measured and projected, those that there are."""
    from frugal.core.claims import verify

    found = verify(claim)
    evidence = getattr(found, "evidence", found)
    bars = {"paper": claim.value, "measured here": evidence.measured, "projected": evidence.projected}
    bars = {name: value for name, value in bars.items() if value is not None}
    verdict = getattr(found, "verdict", None) or claim.verdict
    fig = blank(f"{escape(claim.quote)} ({escape(str(verdict))})", "source", f"value ({escape(claim.unit)})")
    fig.add_bar(x=list(bars), y=list(bars.values()), text=[f"{value:.4g}" for value in bars.values()], name=escape(claim.key))
    return fig.update_yaxes(rangemode="tozero")


def our_citation() -> str:
    """BibTeX of this software, from CITATION.cff of the repository, else from the installed package."""
    path = Path(__file__).resolve().parents[3] / "CITATION.cff"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        facts = {m[1]: m[2].strip("\"' ") for m in re.finditer(r"^([\w-]+): *(\S.*)$", text, re.MULTILINE)}
        authors = re.findall(r"^ +- name: *\"?([^\"\n]+)\"?", text, re.MULTILINE)
        authors += [f"{last}, {first}" for last, first in re.findall(r"family-names: *\"?([^\"\n]+)\"?\s+given-names: *\"?([^\"\n]+)\"?", text)]
    else:
        about = importlib.metadata.metadata("frugal")
        facts, authors = {"title": f"Frugal: {about['Summary']}", "version": about["Version"]}, ["The Frugal contributors"]
    rows = {"author": " and ".join(f"{{{name}}}" for name in authors), "title": f"{{{facts['title']}}}",
            "version": facts.get("version", ""), "year": facts.get("date-released", "")[:4], "url": facts.get("url", "")}  # fmt: skip
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in rows.items() if value)
    return f"@software{{frugal,\n{body}\n}}"


def _module(family: str, name: str) -> Any:
    """`frugal.<family>.<name>`, None where the family or the module does not exist."""
    try:
        spec = importlib.util.find_spec(f"frugal.{family}.{name}")
    except ModuleNotFoundError:
        return None
    return None if spec is None else importlib.import_module(f"frugal.{family}.{name}")


def _write(path: Path, text: str) -> str:
    return write_atomically(path, text).name
