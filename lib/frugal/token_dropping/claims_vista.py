"""Headline numbers of VISTA (arXiv 2502.03628) and what was found here.

The paper shows its three findings as curves without a number, so the sizes below are ours to find; what is judged is the
direction, and an effect whose 95 % interval over scenes covers "no effect" is counted as none. The cut is that of the
paper's own strengths, 0.17 and 0.3, not of those that suit these scenes best.
"""
from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.token_dropping.claims_paint import cut, effect

__all__ = ["CLAIMS"]

VISTA = paper("vista")
_FINDINGS = "arXiv 2502.03628, section 3 (direction; the size is ours to find)"


def _finding(name: str, names: str, neutral: float, note: str) -> Evidence:
    rows = load_recorded("token_dropping", "vista_findings")
    row = rows[(rows.finding == name) & (rows.set == names)].iloc[0]
    where = f" (layer {int(row.layer)} against the last)" if row.layer >= 0 else ""
    return effect(float(row.value), float(row.low), float(row.high), neutral, note + where)


CLAIMS = [
    Claim("vista_cut", VISTA, "Steering lowers hallucination in open-ended generation by about 40 %.", 40, "%",
          "arXiv 2502.03628, abstract (four architectures, three decoding strategies)", "measured",
          lambda: cut("VISTA, paper's setting"), "reproduced", neutral=0.0, side="at least"),
    Claim("vista_rank_loss", VISTA, "True names lose rank as the caption grows.", 1, "places", _FINDINGS, "measured",
          lambda: _finding("rank loss", "hidden true", 0.0, "places that unsaid true names lose from the first name to the last"),
          "not reproduced", side="at least"),
    Claim("vista_early_peak", VISTA, "True names stand highest before the last layer.", 1, "places", _FINDINGS, "measured",
          lambda: _finding("early peak", "true, still to come", 0.0, "places better than in the last layer"), "not reproduced",
          side="at least"),
    Claim("vista_hidden", VISTA, "True names that are never said stay high in the ranking.", 0.75, "share", _FINDINGS, "measured",
          lambda: _finding("above absent", "hidden true", 0.5, "share of absent names below an unsaid true name; chance is 0.5"),
          "reproduced", neutral=0.5, side="at least"),
]
