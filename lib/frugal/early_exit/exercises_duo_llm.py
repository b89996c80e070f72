"""Exercises on Duo-LLM: the oracle's choice under a budget, and what makes a token difficult.

Both read a hand-made table: pattern -> loss of each token in nats. A pattern has a letter a layer, `B` big or `s`
small.
"""

from frugal.explore.exercises import Exercise, equal, wrong

__all__ = ["EXERCISES", "best_pattern", "token_difficulty"]

Table = dict[str, list[float]]

# Three layers, four tokens: one that a middle layer helps, one that nothing helps, one that first and last layers help
# and all big does not, an easy one.
TABLE: Table = {
    "sss": [2.9, 6.0, 1.4, 0.2],
    "ssB": [2.7, 6.0, 0.9, 0.2],
    "sBs": [0.8, 6.1, 1.3, 0.3],
    "Bss": [2.5, 6.0, 1.5, 0.1],
    "sBB": [0.7, 6.1, 1.0, 0.2],
    "BsB": [2.4, 5.9, 0.5, 0.2],
    "BBs": [0.9, 6.0, 1.6, 0.2],
    "BBB": [0.6, 6.0, 1.2, 0.1],
}
# Two layers; the third token prefers a pattern with fewer bigs than its budget.
SMALLER: Table = {"ss": [1.0, 2.0, 0.1], "sB": [0.9, 1.5, 0.8], "Bs": [0.4, 1.8, 0.7], "BB": [0.5, 1.9, 0.6]}


def best_pattern_solution(table: Table, budget: int) -> list[str]:
    """For each token the pattern with exactly `budget` big layers and the lowest loss; the first of equal ones."""
    allowed = [pattern for pattern in table if pattern.count("B") == budget]
    num_tokens = len(next(iter(table.values())))
    return [min(allowed, key=lambda pattern: table[pattern][t]) for t in range(num_tokens)]


def _check_best(answer) -> None:
    for table, budget in [(TABLE, 1), (TABLE, 2), (SMALLER, 1), (TABLE, 0), (SMALLER, 2), (TABLE, 3)]:
        got, want = list(answer(dict(table), budget)), best_pattern_solution(table, budget)
        if got == want:
            continue
        case, num_tokens = f"{len(table)} patterns, budget {budget}", len(want)
        said = f"got {got}, expected {want}"
        if len(got) != num_tokens:
            wrong(
                f"got {len(got)} patterns, expected {num_tokens}",
                "one pattern for each token, not one for the text",
                case,
            )
        if any(pattern not in table for pattern in got):
            wrong(said, "give the patterns as they stand in the table, for example 'sBs'", case)
        if any(pattern.count("B") != budget for pattern in got):
            wrong(
                said,
                "a budget of k means exactly k big layers: a cheaper pattern is another point of the curve",
                case,
            )
        first = "B" * budget + "s" * (len(want[0]) - budget)
        if set(got) == {first}:
            wrong(said, "only the first layers were tried: any k layers may be the big ones", case)
        if len(set(got)) == 1:
            wrong(said, "the oracle chooses anew for every token: minimise each column, not the mean", case)
        if got == [
            max((p for p in table if p.count("B") == budget), key=lambda p: table[p][t]) for t in range(num_tokens)
        ]:
            wrong(said, "these are losses: lower is better", case)
        wrong(said, "filter the patterns by their number of B, then take the lowest loss in each column", case)


def _at_most(table: Table, budget: int) -> list[str]:
    allowed = [p for p in table if p.count("B") <= budget]
    return [min(allowed, key=lambda p: table[p][t]) for t in range(len(next(iter(table.values()))))]


def _nested(table: Table, budget: int) -> list[str]:
    layers = len(next(iter(table)))
    return ["B" * budget + "s" * (layers - budget)] * len(next(iter(table.values())))


def _one_for_all(table: Table, budget: int) -> list[str]:
    allowed = [p for p in table if p.count("B") == budget]
    return [min(allowed, key=lambda p: sum(table[p]))] * len(next(iter(table.values())))


def _highest(table: Table, budget: int) -> list[str]:
    allowed = [p for p in table if p.count("B") == budget]
    return [max(allowed, key=lambda p: table[p][t]) for t in range(len(next(iter(table.values()))))]


best_pattern = Exercise(
    key="best_pattern",
    title="What the oracle picks",
    prompt="`table` maps a pattern such as `'sBs'` (a letter a layer, `B` big or `s` small) to the loss of each token "
    "in nats. Return for each token the pattern with exactly `budget` big layers and the lowest loss; the first in the "
    "table if two are equal.",
    stub="def best_pattern(table, budget):\n    raise NotImplementedError  # yours: a list with one pattern a token",
    test=_check_best,
    hints=(
        "`pattern.count('B')` is what a pattern spends.",
        "`min(allowed, key=lambda pattern: table[pattern][t])` for every token t.",
    ),
    difficulty=1,
    minutes=8,
    reference=best_pattern_solution,
    wrong=[
        (_at_most, "exactly k big layers"),
        (_nested, "only the first layers"),
        (_one_for_all, "anew for every token"),
        (_highest, "lower is better"),
    ],
)


def token_difficulty_solution(table: Table) -> list[float]:
    """Loss under the cheapest pattern minus the best loss that any pattern reaches, for each token."""
    cheap = table[min(table, key=lambda pattern: pattern.count("B"))]
    return [loss - min(row[t] for row in table.values()) for t, loss in enumerate(cheap)]


def _check_difficulty(answer) -> None:
    for table in (TABLE, SMALLER):
        got, want = list(answer(dict(table))), token_difficulty_solution(table)
        cheap, dear = table[min(table, key=lambda p: p.count("B"))], table[max(table, key=lambda p: p.count("B"))]
        case = f"{len(table)} patterns, {len(want)} tokens"
        if len(got) == len(want):
            shown = f"got {[round(float(v), 2) for v in got]}, expected {[round(v, 2) for v in want]}"
            for other, hint in (
                (
                    cheap,
                    "that is a loss: a token that no pattern predicts is hopeless, not difficult. What is saved?",
                ),
                (
                    [min(row[t] for row in table.values()) for t in range(len(want))],
                    "that is what remains when everything is tried; difficulty is how much trying saves",
                ),
                (
                    [a - b for a, b in zip(cheap, dear)],
                    "all big is not always the best: take the lowest loss of all patterns, else it can be negative",
                ),
                (
                    [a - max(row[t] for row in table.values()) for t, a in enumerate(cheap)],
                    "the most reachable loss is the wrong end: the best pattern has the lowest",
                ),
            ):
                if _close(got, other):
                    wrong(shown, hint, case)
        equal([float(v) for v in got], want, "loss of all small minus the lowest loss of the token's column", case=case)


def _close(a: list[float], b: list[float]) -> bool:
    return all(abs(float(x) - y) < 1e-9 for x, y in zip(a, b))


def _just_loss(table: Table) -> list[float]:
    return list(table[min(table, key=lambda p: p.count("B"))])


def _what_remains(table: Table) -> list[float]:
    return [min(row[t] for row in table.values()) for t in range(len(next(iter(table.values()))))]


def _against_all_big(table: Table) -> list[float]:
    cheap, dear = table[min(table, key=lambda p: p.count("B"))], table[max(table, key=lambda p: p.count("B"))]
    return [a - b for a, b in zip(cheap, dear)]


def _from_the_worst(table: Table) -> list[float]:
    cheap = table[min(table, key=lambda p: p.count("B"))]
    return [a - max(row[t] for row in table.values()) for t, a in enumerate(cheap)]


token_difficulty = Exercise(
    key="token_difficulty",
    title="Difficult or hopeless?",
    prompt="From the same kind of `table`, return the difficulty of each token in nats: what the best pattern saves "
    "over the cheapest one (the pattern with the fewest `B`). A token whose loss stays high whatever runs is not "
    "difficult.",
    stub="def token_difficulty(table):\n    raise NotImplementedError  # yours: a list with one number a token",
    test=_check_difficulty,
    hints=(
        "Two numbers a token: one row of the table, and the minimum of a column.",
        "It is never negative: the cheapest pattern is in the table too.",
    ),
    difficulty=1,
    minutes=6,
    reference=token_difficulty_solution,
    wrong=[
        (_just_loss, "hopeless, not difficult"),
        (_what_remains, "how much trying saves"),
        (_against_all_big, "not always the best"),
        (_from_the_worst, "wrong end"),
    ],
)

EXERCISES = [best_pattern, token_difficulty]
