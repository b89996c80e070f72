"""The ledger: each headline number of a paper beside what was found here, with a verdict that is computed.

How a verdict comes about. The judged number is the projection for a claim that is checked by projection, otherwise
what was measured, counted or simulated; where only the other one exists, that one.
  reproduced           the judged number is within the tolerance of the paper's (for side="at least" or "at most":
                       not worse than the paper's by more than the tolerance);
  direction holds      it lies on the same side of `neutral` (no effect: 1 for ratios, 0 for differences) as the
                       paper's, but not within the tolerance;
  not reproduced       it lies on the other side, or shows no effect, or the claim has no neutral point;
  out of reach here    the check gives no number: the miniature cannot show it, and no projection is honest.
The verdict recorded in claims.py must equal the computed one; `check_recorded` fails when it CHANGES, in either
direction, so an honest "not reproduced" stays green and a silent drift does not.
"""
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from .declared import families
from .papers import FAMILIES, Paper

Number = int | float
VERDICTS = ("reproduced", "direction holds", "not reproduced", "out of reach here")
HOW = ("measured", "counted", "simulated", "projected")
SIDES = ("two-sided", "at least", "at most")
COLUMNS = ("key", "paper", "quote", "value", "unit", "how", "measured", "projected", "verdict", "recorded", "source",
           "family", "note")
RATIO_UNITS = ("x", "times", "ratio")


@dataclass(frozen=True)
class Evidence:
    """What a check found, in the claim's unit. measured: on the miniature (measured, counted or simulated).
    projected: by roofline at the paper's scale. note: what the reader must know, in a line."""

    measured: Number | None = None
    projected: Number | None = None
    note: str = ""

    def __post_init__(self):
        for name in ("measured", "projected"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}: give a finite number, or None where there is none")


@dataclass(frozen=True)
class Claim:
    """One headline number.

    key: unique. paper: where from. quote: the headline in our own words. value, unit: the paper's number.
    source: arXiv id and table, figure or section. check: gives the Evidence, or None.
    tolerance: relative to `value` (absolute where value is 0). verdict: the recorded one. neutral: the value that
    means "no effect"; None takes 1 for the units x, times, ratio and 0 otherwise, but a percentage must give it; NaN:
    there is no such value. how: one of HOW.
    side: whether more ("at least") or less ("at most") than the paper's number is as good.
    """

    key: str
    paper: Paper
    quote: str
    value: Number
    unit: str
    source: str
    how: str
    check: Callable[[], Evidence | None]
    verdict: str
    tolerance: Number = 0.1
    neutral: Number | None = None
    side: str = "two-sided"

    def __post_init__(self):
        for name, allowed in (("how", HOW), ("verdict", VERDICTS), ("side", SIDES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"claim {self.key}: {name} {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not math.isfinite(self.value) or not self.tolerance >= 0:
            raise ValueError(f"claim {self.key}: value {self.value} must be finite and tolerance {self.tolerance} not negative")
        if self.unit == "%" and self.neutral is None:
            raise ValueError(f"claim {self.key}: a percentage needs `neutral`, the value that means no effect (chance, "
                             "or the baseline's own); else any positive number would count as the right direction")


@dataclass(frozen=True)
class Finding:
    """A claim with what its check found now and the verdict that follows."""

    claim: Claim
    evidence: Evidence
    verdict: str

    @property
    def changed(self) -> bool:
        return self.verdict != self.claim.verdict


class VerdictChanged(AssertionError):
    """Recomputed verdicts differ from the recorded ones; the message lists both, and the numbers."""


def verify(claim: Claim) -> Finding:
    """Run the claim's check and judge it."""
    evidence = claim.check()
    evidence = Evidence() if evidence is None else evidence
    return Finding(claim, evidence, judge(claim, evidence))


def judge(claim: Claim, evidence: Evidence) -> str:
    """The verdict by the rule at the top of this module."""
    first, second = evidence.measured, evidence.projected
    if claim.how == "projected":
        first, second = second, first
    found = second if first is None else first
    if found is None:
        return "out of reach here"
    slack = claim.tolerance * (abs(claim.value) if claim.value else 1)
    above, below = found >= claim.value - slack, found <= claim.value + slack
    if {"two-sided": above and below, "at least": above, "at most": below}[claim.side]:
        return "reproduced"
    neutral = claim.neutral
    if neutral is None:
        neutral = 1 if claim.unit in RATIO_UNITS else 0
    return "direction holds" if (found - neutral) * (claim.value - neutral) > 0 else "not reproduced"


def check_recorded(claims: Iterable[Claim]) -> list[Finding]:
    """Verify all; raises VerdictChanged, listing every claim whose verdict is not the recorded one."""
    findings = [verify(claim) for claim in claims]
    changed = [f"{f.claim.key}: recorded {f.claim.verdict!r}, now {f.verdict!r} (paper {f.claim.value} {f.claim.unit}, "
               f"measured {f.evidence.measured}, projected {f.evidence.projected})" for f in findings if f.changed]
    if changed:
        raise VerdictChanged("\n".join(changed))
    return findings


def claims_of(family: str | None = None) -> list[Claim]:
    """The claims of one family, or of all that are built, in reading order.

    A family without a claims.py has none. ValueError for an unknown family, or a key that is used twice.
    """
    built = families()
    if family is not None and family not in built and "." not in family:
        raise ValueError(f"unknown family {family!r}; there are: {', '.join(built)}")
    order = [name for name in FAMILIES if name in built] + [name for name in built if name not in FAMILIES]
    found = [claim for name in ([family] if family else order) for claim in _module_claims(name)]
    keys = [claim.key for claim in found]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"claim keys used twice: {', '.join(twice)}")
    return found


def ledger(family: str | None = None, progress: bool | None = None) -> pd.DataFrame:
    """Every claim, verified now, one row each (columns: COLUMNS). A check that raises gives the verdict "check failed".

    progress: a bar; None = only on a terminal.
    """
    from tqdm.auto import tqdm
    claims = claims_of(family)
    return pd.DataFrame([_row(claim) for claim in tqdm(claims, desc="claims", delay=2, leave=False,
                                                          disable=None if progress is None else not progress)],
                        columns=list(COLUMNS))


def _row(claim: Claim) -> dict[str, object]:
    try:
        finding = verify(claim)
        evidence, verdict = finding.evidence, finding.verdict
    except Exception as error:
        evidence, verdict = Evidence(note=f"{type(error).__name__}: {error}"), "check failed"
    return {"key": claim.key, "paper": claim.paper.key, "quote": claim.quote, "value": claim.value, "unit": claim.unit,
            "how": claim.how, "measured": evidence.measured, "projected": evidence.projected, "verdict": verdict,
            "recorded": claim.verdict, "source": claim.source, "family": claim.paper.family, "note": evidence.note}


def _module_claims(family: str) -> list[Claim]:
    name = f"{family if '.' in family else f'frugal.{family}'}.claims"
    if importlib.util.find_spec(name) is None:
        return []
    return list(importlib.import_module(name).CLAIMS)
