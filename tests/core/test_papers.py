"""The paper records: fifty-six, complete, and the citations made from them."""
import re
from collections import Counter
from pathlib import Path

import pytest

from frugal.core.papers import FAMILIES, PAPERS, Paper, paper, papers

REPOSITORY = Path(__file__).parents[2]
SIZES = {"kv_eviction": 5, "token_dropping": 3, "early_exit": 3, "visual_tokenizers": 8, "speculative_decoding": 6,
         "visual_generation": 6, "kv_reuse": 5, "serving": 7, "weight_traffic": 3, "parallelism": 7, "measuring": 3}


def test_fifty_six_papers_in_eleven_families():
    assert len(PAPERS) == 56
    assert Counter(p.family for p in PAPERS) == SIZES
    assert list(FAMILIES) == list(dict.fromkeys(p.family for p in PAPERS)) == list(SIZES)


def test_keys_ids_and_titles_are_unique_and_well_formed():
    for values in ([p.key for p in PAPERS], [p.arxiv for p in PAPERS], [p.title for p in PAPERS]):
        assert [value for value, count in Counter(values).items() if count > 1] == []
    assert [p for p in PAPERS if not re.fullmatch(r"\d{4}\.\d{4,5}", p.arxiv)] == []
    assert [p for p in PAPERS if not 2020 < p.year < 2027 or len(p.title) < 20 or "," not in p.authors] == []


def test_scope_has_a_row_for_each_paper_and_says_which_are_only_planned():
    rows = {}
    for line in (REPOSITORY / "SCOPE.md").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\| \[(\w+)\]\((\S+)\) \|(.*)\|$", line):
            rows[found[1]] = (found[2], [cell.strip() for cell in found[3].split("|")])
    assert list(rows) == [p.key for p in PAPERS]
    assert {key: url for key, (url, _) in rows.items()} == {p.key: p.url for p in PAPERS}
    assert {p.key for p in PAPERS if not p.built} == {key for key, (_, cells) in rows.items() if cells == ["planned", "", ""]}
    assert [key for key, (_, cells) in rows.items() if cells[0] != "planned" and not all(cells)] == []


def test_the_readme_names_every_paper_once_in_its_family():
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    table = {cells[2].strip(" `"): cells[4].strip().split(", ") for line in lines
             if len(cells := line.split("|")) == 6 and cells[2].strip(" `") in FAMILIES}
    assert table == {family: [p.key for p in papers(family)] for family in FAMILIES}


@pytest.mark.parametrize("record", PAPERS, ids=lambda p: p.key)
def test_bibtex_has_balanced_braces_and_the_facts(record):
    text = record.bibtex()
    depth = 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    for fact in (record.key, record.title, record.arxiv, str(record.year), record.authors.split(",")[0]):
        assert fact in text


def test_a_baseline_from_elsewhere():
    h2o = Paper.other(arxiv="2306.14048", where="section 4", title="H2O: Heavy-Hitter Oracle")
    assert (h2o.key, h2o.year, h2o.family, h2o.module, h2o.built) == ("h2o", 2023, "", "", False)
    assert "author" not in h2o.bibtex() and "2306.14048" in h2o.bibtex()
    with pytest.raises(ValueError, match="v2"):
        Paper.other(arxiv="2306.14048v2", title="H2O")


def test_lookup_by_key_and_the_error_for_a_near_miss():
    assert paper("keyformer").module == "frugal.kv_eviction.keyformer"
    assert paper("keyformer", where="section 3").where == "section 3" and paper("keyformer").where == ""
    with pytest.raises(ValueError, match="keyformer"):
        paper("keyfromer")
    with pytest.raises(ValueError, match="early_exit"):
        papers("early")
