import math
import sys

import pytest
from hypothesis import given, strategies as st

from frugal.core import claims as module
from frugal.core.claims import Claim, Evidence, VerdictChanged, check_recorded, claims_of, judge, ledger, verify
from frugal.core.papers import paper


def claim(value=2.0, found=None, verdict="reproduced", projected=None, **settings):
    evidence = None if found is None and projected is None else Evidence(found, projected, "a note")
    defaults = dict(key="speed", paper=paper("keyformer"), quote="twice as fast", unit="x", source="2403.09054, abstract",
                    how="measured", check=lambda: evidence, tolerance=0.1)
    return Claim(value=value, verdict=verdict, **{**defaults, **settings})


@pytest.mark.parametrize("settings, verdict", [
    (dict(found=2.0), "reproduced"), (dict(found=2.2), "reproduced"), (dict(found=1.8), "reproduced"),
    (dict(found=2.3), "direction holds"), (dict(found=1.1), "direction holds"), (dict(found=9.0), "direction holds"),
    (dict(found=1.0), "not reproduced"), (dict(found=0.7), "not reproduced"), (dict(), "out of reach here"),
    (dict(found=9.0, side="at least"), "reproduced"), (dict(found=1.5, side="at least"), "direction holds"),
    (dict(found=0.5, side="at least"), "not reproduced"), (dict(found=1.2, side="at most"), "reproduced"),
    (dict(found=1.5, projected=2.0), "direction holds"),
    (dict(found=1.5, projected=2.0, how="projected"), "reproduced"),
    (dict(projected=2.0), "reproduced"), (dict(found=1.5, how="projected"), "direction holds"),
    (dict(value=6.22, found=1.0, unit="points"), "direction holds"),
    (dict(value=6.22, found=-1.0, unit="points"), "not reproduced"),
    (dict(value=-0.3, found=-0.1, unit="nats"), "direction holds"),
    (dict(value=0.0, found=0.05, unit="points"), "reproduced"),
    (dict(value=0.0, found=0.2, unit="points"), "not reproduced"),
    (dict(value=0.5, found=0.8, unit="x"), "direction holds"), (dict(value=0.5, found=1.2, unit="x"), "not reproduced"),
    (dict(value=90, found=60, unit="%", neutral=50), "direction holds"),
    (dict(value=90, found=40, unit="%", neutral=50), "not reproduced"),
    (dict(value=90, found=60, unit="%", neutral=math.nan), "not reproduced"),
])
def test_the_verdict_follows_the_rule(settings, verdict):
    assert verify(claim(**settings)).verdict == verdict


@given(value=st.floats(1.05, 100), found=st.floats(0.01, 200), tolerance=st.floats(0, 0.5))
def test_a_wider_tolerance_never_makes_a_verdict_worse(value, found, tolerance):
    order = ["not reproduced", "direction holds", "reproduced"]
    strict, wide = (judge(claim(value, found, tolerance=t), Evidence(found)) for t in (tolerance, 2 * tolerance))
    assert order.index(strict) <= order.index(wide)
    better = judge(claim(value, tolerance=tolerance, side="at least"), Evidence(found * 1.5))
    assert order.index(judge(claim(value, tolerance=tolerance, side="at least"), Evidence(found))) <= order.index(better)


@pytest.mark.parametrize("recorded, found", [("reproduced", 1.2), ("not reproduced", 2.0), ("out of reach here", 2.0),
                                             ("direction holds", None)])
def test_a_changed_verdict_fails_in_either_direction(recorded, found):
    good, drifted = claim(found=0.8, verdict="not reproduced"), claim(found=found, verdict=recorded, key="drifted")
    assert [finding.changed for finding in check_recorded([good])] == [False]
    with pytest.raises(VerdictChanged, match=f"^drifted: recorded '{recorded}', now '{verify(drifted).verdict}' "
                                             r"\(paper 2.0 x, measured"):
        check_recorded([good, drifted])


@pytest.mark.parametrize("settings, fault", [
    (dict(how="guessed"), "how 'guessed'; allowed: measured"), (dict(verdict="yes"), "verdict 'yes'; allowed"),
    (dict(side="both"), "side 'both'"), (dict(value=math.nan), "must be finite"), (dict(tolerance=-1), "not negative"),
    (dict(unit="%"), "a percentage needs `neutral`")])
def test_a_malformed_claim_is_refused(settings, fault):
    with pytest.raises(ValueError, match=fault):
        claim(**settings)


def test_evidence_must_be_finite():
    with pytest.raises(ValueError, match="measured is nan"):
        Evidence(math.nan)


@pytest.fixture
def house(tmp_path, monkeypatch):
    package = tmp_path / "claimhouse" / "kind"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (package / "claims.py").write_text(text)
        return "claimhouse.kind"
    yield write
    for name in [name for name in sys.modules if name.startswith("claimhouse")]:
        del sys.modules[name]


CLAIMS = """
from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
def broken():
    raise ZeroDivisionError("no runs")
def one(key, check, verdict, value=2.0):
    return Claim(key, paper("mikv"), "small", value, "x", "2402.18096, table 1", "counted", check, verdict)
CLAIMS = [one("a", lambda: Evidence(2.1, 3.0, "at 4k"), "reproduced"), one("b", lambda: None, "out of reach here"),
          one("c", broken, "reproduced")]
"""


def test_the_ledger_has_a_row_for_each_claim(house):
    table = ledger(house(CLAIMS))
    assert list(table.columns)[:11] == ["key", "paper", "quote", "value", "unit", "how", "measured", "projected",
                                        "verdict", "recorded", "source"]
    assert table.verdict.tolist() == ["reproduced", "out of reach here", "check failed"]
    assert table.paper.tolist() == ["mikv"] * 3 and table.family.tolist() == ["kv_eviction"] * 3
    assert table.measured[0] == 2.1 and table.projected[0] == 3.0 and table.measured[1:].isna().all()
    assert table.note.tolist() == ["at 4k", "", "ZeroDivisionError: no runs"]


def test_a_failing_check_is_not_swallowed_by_the_test(house):
    with pytest.raises(ZeroDivisionError):
        check_recorded(claims_of(house(CLAIMS)))


def test_keys_are_unique(house):
    with pytest.raises(ValueError, match="claim keys used twice: a"):
        claims_of(house(CLAIMS + "CLAIMS += CLAIMS[:1]\n"))


def test_a_family_without_claims_has_an_empty_ledger(house):
    family = house("")
    import pathlib
    pathlib.Path(sys.path[0], "claimhouse", "kind", "claims.py").unlink()
    assert len(ledger(family)) == 0 and list(ledger(family).columns) == list(module.COLUMNS)


def test_an_unknown_family_lists_the_built_ones():
    with pytest.raises(ValueError, match="unknown family 'kv'; there are: .*kv_eviction"):
        ledger("kv")
