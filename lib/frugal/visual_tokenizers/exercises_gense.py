"""Exercise on GenSE: the token chain of the second stage and its position ids."""
from frugal.explore.exercises import Exercise, wrong

__all__ = ["EXERCISES", "token_chain"]

BOS, SEMANTIC, ACOUSTIC, GENERATED = 0, 3, 67, 128            # as in gense.py: 3 special ids, 64 semantic, then acoustic ones
Chain = tuple[list[int], list[int]]


def token_chain_solution(noisy_semantic: list[int], clean_semantic: list[int], noisy_acoustic: list[int]) -> Chain:
    """(ids, positions) of [noisy semantic | clean semantic | BOS | noisy acoustic] and the first generated place."""
    ids = [*(c + SEMANTIC for c in [*noisy_semantic, *clean_semantic]), BOS, *(c + ACOUSTIC for c in noisy_acoustic)]
    first = len(noisy_semantic) + len(clean_semantic) + 1
    return ids, [*range(first), *range(len(noisy_acoustic)), GENERATED]


GOLDEN = (([5, 9], [5, 7], [100, 2]), ([8, 12, 8, 10, 0, 167, 69], [0, 1, 2, 3, 4, 0, 1, 128]))


def _check(answer) -> None:
    for parts in (GOLDEN[0], ([0], [63], [511]), ([1, 2, 3], [3, 2, 1], [4, 5, 6])):
        want = token_chain_solution(*parts)
        case = f"token_chain({', '.join(map(str, parts))})"
        got = answer(*(list(part) for part in parts))
        if not isinstance(got, tuple) or len(got) != 2:
            wrong(f"got {got!r}", "return two lists: ids and positions", case)
        _explain(list(got[0]), list(got[1]), *want, parts, case)


def _explain(ids: list[int], positions: list[int], want_ids: list[int], want_at: list[int], parts: tuple, case: str) -> None:
    if ids != want_ids:
        said = f"ids {ids}, expected {want_ids}"
        if ids == [*parts[0], *parts[1], BOS, *parts[2]]:
            wrong(said, "codes of both kinds start at 0: where in the one vocabulary does each kind begin?", case)
        if BOS not in ids:
            wrong(said, "BOS stands between the semantic and the acoustic part", case)
        if sorted(ids) == sorted(want_ids):
            wrong(said, "the order is noisy semantic, clean semantic, BOS, noisy acoustic", case)
        wrong(said, "3 special ids, then 64 semantic ones, then the acoustic ones", case)
    if positions == want_at:
        return
    said = f"positions {positions}, expected {want_at}"
    if positions[:-1] == list(range(len(want_at) - 1)):
        wrong(said, "the noisy acoustic part does not run on: its positions restart at 0", case)
    if len(positions) == len(want_at) - 1:
        wrong(said, "one more position is asked for: that of the first generated token", case)
    if positions[:-1] == want_at[:-1]:
        wrong(said, f"generated tokens have positions of their own, from {GENERATED}", case)
    if positions[:len(parts[0]) * 2] == [*range(len(parts[0]))] * 2:
        wrong(said, "the clean semantic part runs on behind the noisy one; only the acoustic part restarts", case)
    wrong(said, "count through both semantic parts and BOS, then start again", case)


def _no_offsets(a: list[int], b: list[int], c: list[int]) -> Chain:
    return [*a, *b, BOS, *c], token_chain_solution(a, b, c)[1]


def _no_bos(a: list[int], b: list[int], c: list[int]) -> Chain:
    ids, positions = token_chain_solution(a, b, c)
    return ids[:len(a) + len(b)] + ids[len(a) + len(b) + 1:], positions


def _runs_on(a: list[int], b: list[int], c: list[int]) -> Chain:
    ids, positions = token_chain_solution(a, b, c)
    return ids, [*range(len(ids)), GENERATED]


def _all_restart(a: list[int], b: list[int], c: list[int]) -> Chain:
    return token_chain_solution(a, b, c)[0], [*range(len(a)), *range(len(b)), len(b), *range(len(c)), GENERATED]


def _acoustic_first(a: list[int], b: list[int], c: list[int]) -> Chain:
    ids, positions = token_chain_solution(a, b, c)
    return ids[-len(c):] + ids[:-len(c)], positions


def _generated_at_zero(a: list[int], b: list[int], c: list[int]) -> Chain:
    ids, positions = token_chain_solution(a, b, c)
    return ids, [*positions[:-1], 0]


token_chain = Exercise(
    key="token_chain", title="The token chain and its positions", prompt=
    "Build the prompt of the second stage from three lists of codes, each from 0: `noisy_semantic | clean_semantic | BOS | noisy_acoustic`. "
    "One vocabulary holds 3 special ids (BOS is 0), then 64 semantic ids, then the acoustic ones. Return `(ids, positions)`; positions "
    "count on through the semantic parts and BOS, restart at 0 for the noisy acoustic part, and end with the position of the first "
    "generated token, 128. Golden example: `([5, 9], [5, 7], [100, 2])` gives ids `[8, 12, 8, 10, 0, 167, 69]` and positions "
    "`[0, 1, 2, 3, 4, 0, 1, 128]`.", stub=
    "def token_chain(noisy_semantic: list[int], clean_semantic: list[int], noisy_acoustic: list[int]) -> tuple[list[int], list[int]]:\n"
    "    raise NotImplementedError  # yours",
    test=_check, hints=("Which ids does the acoustic code 0 come behind? 3 + 64.", "range(...) three times: semantic and BOS, acoustic, and one number."),
    difficulty=1, minutes=10, reference=token_chain_solution,
    wrong=[(_no_offsets, "where in the one vocabulary"), (_no_bos, "BOS stands between"), (_runs_on, "restart at 0"), (_all_restart, "runs on behind the noisy one"),
           (_acoustic_first, "the order is"), (_generated_at_zero, "positions of their own")])

EXERCISES = [token_chain]
