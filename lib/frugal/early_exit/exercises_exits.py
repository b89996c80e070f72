"""Exercises on the exit baselines: what a check costs, which drafts hold."""
from frugal.explore.exercises import Exercise, equal, wrong

__all__ = ["EXERCISES", "accepted_tokens", "charged_layers"]


# -- what a confidence check costs ---------------------------------------------------------------------------------

def charged_reference(exits, left_after, num_layers, head):
    """Layer-equivalents that one token costs: layers run, plus `head` for every time the output matrix is read."""
    asked = sum(e <= left_after for e in exits)
    return left_after + head * (asked + (left_after == num_layers and num_layers not in exits))


def _check_charged(cost):
    for exits, left, layers, head in [((21, 24, 28), 24, 30, 8.0), ((21, 24, 28), 21, 30, 8.0), ((21, 24, 28), 30, 30, 8.0),
                                      ((), 30, 30, 8.0), ((4, 6, 8, 10), 8, 12, 1.0), ((15, 30), 30, 30, 8.0)]:
        got, want = float(cost(exits, left, layers, head)), charged_reference(exits, left, layers, head)
        if got == left:
            wrong(f"got {got}, expected {want}", "each candidate that was asked has read the whole output matrix: charge it")
        if got == left + head != want:
            wrong(f"got {got}, expected {want}", "the candidates that said no were asked too")
        if got == left + head * len(exits) != want:
            wrong(f"got {got}, expected {want}", "candidates above the exit are never asked, but a token that reaches the last layer "
                                                 "needs the head there as well")
        equal(got, want, "layers run + head x (candidates up to the exit, and the last layer when the token gets there)")


def _free_checks(exits, left_after, num_layers, head):
    return left_after


def _one_check(exits, left_after, num_layers, head):
    return left_after + head


def _all_checks(exits, left_after, num_layers, head):
    return left_after + head * len(exits)


charged_layers = Exercise(
    key="charged_layers", title="The check is not free",
    prompt="A token may leave after one of `exits` (layers run, ascending). At each it asks the output matrix, which costs as much "
           "as `head` layers. It left after `left_after` layers; `num_layers` means that no candidate was sure, and then the "
           "last layer needs the head too. Return its cost in layers.",
    stub='''def cost_in_layers(exits: tuple, left_after: int, num_layers: int, head: float) -> float:
    raise NotImplementedError  # yours''',
    test=_check_charged, hints=("Count how often the output matrix was read.", "Candidates with e <= left_after were asked."),
    difficulty=1, minutes=5, reference=charged_reference,
    wrong=[(_free_checks, "charge it"), (_one_check, "said no were asked too"), (_all_checks, "never asked")])


# -- which drafts hold ---------------------------------------------------------------------------------------------

def accepted_reference(drafts, wanted):
    """Tokens written in one round: the drafts up to the first wrong one, and what the whole model says there."""
    kept = 0
    while kept < len(drafts) and drafts[kept] == wanted[kept]:
        kept += 1
    return [*drafts[:kept], wanted[kept]]


def _check_accepted(accept):
    cases = [([5, 6, 7], [5, 9, 7, 8]), ([5, 6, 7], [5, 6, 7, 8]), ([5, 6], [1, 6, 7]), ([5], [5, 3]), ([4, 4, 4], [4, 4, 2, 4])]
    for drafts, expected in cases:
        got, want = list(accept(list(drafts), list(expected))), accepted_reference(drafts, expected)
        if got == [d for d, w in zip(drafts, expected) if d == w] + [expected[-1]] != want:
            wrong(f"got {got}, expected {want}", "a draft behind the first wrong one was written on a text that does not exist")
        if got == list(drafts) != want[:-1]:
            wrong(f"got {got}, expected {want}", "compare each draft with what the whole model wanted there")
        if got == want[:-1]:
            wrong(f"got {got}, expected {want}", "the check has already computed the right token where the drafts end: write it")
        equal(got, want, "the matching drafts from the start, then one token of the whole model")


def _no_bonus(drafts, wanted):
    return accepted_reference(drafts, wanted)[:-1]


def _takes_all(drafts, wanted):
    return list(drafts)


def _any_match(drafts, wanted):
    return [d for d, w in zip(drafts, wanted) if d == w] + [wanted[-1]]


accepted_tokens = Exercise(
    key="accepted_tokens", title="Which drafts hold?",
    prompt="`drafts` are the tokens that the first layers wrote. `wanted[i]` is what the whole model says at the place of draft "
           "`i`, given the drafts before it; it has one entry more. Return the tokens that greedy decoding would have written.",
    stub='''def tokens_that_hold(drafts: list[int], wanted: list[int]) -> list[int]:
    raise NotImplementedError  # yours''',
    test=_check_accepted, hints=("Walk along until the first draft that differs.", "One token of the whole model is always free."),
    difficulty=1, minutes=5, reference=accepted_reference,
    wrong=[(_no_bonus, "write it"), (_takes_all, "compare each draft"), (_any_match, "does not exist")])

EXERCISES = [charged_layers, accepted_tokens]
