"""Exercises on SkipDecode: the schedule's layers, and a check that no key is missing."""
from frugal.early_exit.skipdecode import SkipSchedule
from frugal.explore.exercises import Exercise, wrong

__all__ = ["EXERCISES", "find_missing_key", "skip_layers"]


def _layers(num_layers: int, speedup: float, n_min: int, num_steps: int, index: int) -> list[int]:
    return SkipSchedule(num_layers, speedup, n_min, num_steps).layers(index)


def _check_layers(layers) -> None:
    for num_layers, speedup, n_min, num_steps in [(12, 2.0, 2, 9), (12, 4.0, 2, 5), (24, 3.0, 4, 17), (12, 1.0, 2, 5), (12, 1.5, 4, 9),
                                                   (30, 1.25, 2, 15)]:
        found = [list(layers(num_layers, speedup, n_min, num_steps, j)) for j in range(num_steps)]
        for j in range(1, num_steps):
            if len(found[j]) > len(found[j - 1]):
                wrong(f"{len(found[j - 1])} layers at index {j - 1} and {len(found[j])} at index {j}",
                      "the depth must never rise: it starts at N_max and ends at N_min",
                      f"skip_layers({num_layers}, {speedup}, {n_min}, {num_steps}, {j})")
        for j, own in enumerate(found):
            _check_position(own, found, j, (num_layers, speedup, n_min, num_steps))


def _check_position(own: list[int], found: list[list[int]], j: int, knobs: tuple) -> None:
    num_layers, speedup, n_min, num_steps = knobs
    want, case = _layers(*knobs, j), f"skip_layers({', '.join(map(str, knobs))}, {j})"
    said = f"layers {own}, expected {want}"
    if any(not 0 <= i < num_layers for i in own):
        wrong(said, "N_max = 2 L / s - N_min can pass L: then N_max is L, and N_min rises so that the mean stays L / s", case)
    if len(own) == len(want) and own != want:
        if num_layers - 1 not in own:
            wrong(said, "the top layers always run: it is the middle that is skipped", case)
        wrong(said, "layer 0, the warm-up layer, always runs; the other N - 1 are the topmost ones", case)
    if len(own) != len(want):
        mean = sum(map(len, found)) / num_steps
        if abs(mean - num_layers / speedup) > 0.5:
            wrong(f"a mean depth of {mean:.3g} over the answer, expected about L / s = {num_layers / speedup:.3g}",
                  "N_max + N_min = 2 L / s, so N_max depends on the target and on N_min", case)
        wrong(said, "round the depth to the nearest whole number, halves up: floor(x + 0.5)", case)


def _line(num_layers, speedup, n_min, num_steps, index):
    return len(_layers(num_layers, speedup, n_min, num_steps, index))


def _top_skipped(num_layers, speedup, n_min, num_steps, index):
    return list(range(_line(num_layers, speedup, n_min, num_steps, index)))


def _no_warm_up(num_layers, speedup, n_min, num_steps, index):
    return list(range(num_layers - _line(num_layers, speedup, n_min, num_steps, index), num_layers))


def _rising(num_layers, speedup, n_min, num_steps, index):
    return _layers(num_layers, speedup, n_min, num_steps, num_steps - 1 - index)


def _always_from_full(num_layers, speedup, n_min, num_steps, index):
    depth = int(num_layers - (num_layers - n_min) * index / (num_steps - 1) + 0.5)
    return [0, *range(num_layers - depth + 1, num_layers)]


def _not_capped(num_layers, speedup, n_min, num_steps, index):
    high = 2 * num_layers / speedup - n_min
    depth = int(high - (high - n_min) * index / (num_steps - 1) + 0.5)
    return [0, *range(num_layers - depth + 1, num_layers)]


def _rounded_down(num_layers, speedup, n_min, num_steps, index):
    high, low = SkipSchedule(num_layers, speedup, n_min, num_steps).ends
    depth = int(high - (high - low) * index / (num_steps - 1))
    return [0, *range(num_layers - depth + 1, num_layers)]


skip_layers = Exercise(
    key="skip_layers", title="Layers of a schedule",
    prompt="Return the layers that generated token `index` (0 to `num_steps` - 1) runs under SkipDecode with one warm-up layer: "
           "layer 0 and the topmost others, ascending. The depth falls on a line from N_max to N_min, its mean is "
           "`num_layers / speedup`, and it is rounded to the nearest whole number. `n_min` is the fewest layers; where N_max would "
           "pass `num_layers`, it is `num_layers` and the line ends higher than `n_min`.",
    stub='''def skip_layers(num_layers: int, speedup: float, n_min: int, num_steps: int, index: int) -> list[int]:
    raise NotImplementedError  # yours''',
    test=_check_layers,
    hints=("The mean of a line is the mean of its ends: N_max + N_min = 2 L / s.",
           "With 12 layers, a speed-up of 2, n_min 2 and 9 steps the depths are 10, 9, ... 2; at index 3 the layers are "
           "[0, 6, 7, 8, 9, 10, 11]."),
    difficulty=2, minutes=10, reference=_layers,
    wrong=[(_top_skipped, "the top layers always run"), (_no_warm_up, "warm-up layer"), (_rising, "never rise"),
           (_always_from_full, "N_max depends on the target"), (_not_capped, "can pass L"), (_rounded_down, "nearest whole number")])


def _missing(sets: list[list[int]]) -> tuple[int, ...]:
    for j, own in enumerate(sets):
        for layer in own:
            for i in range(j):
                if layer not in sets[i]:
                    return j, layer, i
    return ()


_CASES = [[[0, 1, 2, 3], [0, 2, 3], [0, 3]], [[0, 2, 3], [0, 1, 2, 3]], [[0, 1, 2, 3], [0, 3], [0, 2, 3]], [[0, 3], [0, 2]], [[0, 1], [0, 3]],
          [[0, 1, 2], [0, 1, 2], [0, 1, 2]], [[0, 2, 3], [0, 3], [0, 3], [0, 3, 4]], [[0, 1, 3], [0, 3], [0, 1, 3], [0, 2]], [[1]], []]


def _check_missing(find) -> None:
    for sets in _CASES:
        said, want = find([list(s) for s in sets]), _missing(sets)
        case = f"find_missing_key({sets})"
        said = tuple(said)
        if said == want:
            continue
        if not want:
            wrong(f"found {said}, but nothing is missing", "a key is missed only where a later token runs a layer that an earlier one "
                  "skipped; the other way round is how layers are saved", case)
        if not said:
            depths = [len(s) for s in sets]
            if depths == sorted(depths, reverse=True):
                wrong(f"nothing found, expected {want}", "equal or falling depths are not enough: compare the sets, layer by layer", case)
            wrong(f"nothing found, expected {want}", "the key is missing at any earlier position, not just the first: look at all of them", case)
        if said[0] != want[0] or said[1] != want[1]:
            wrong(f"found {said}, expected {want}", "report the first token that misses a key, and its lowest such layer", case)
        wrong(f"found {said}, expected {want}", "report the earliest position whose key is missing", case)


def _other_way(sets):
    for j, own in enumerate(sets):
        for i in range(j):
            for layer in sets[i]:
                if layer not in own:
                    return j, layer, i
    return ()


def _depths_alone(sets):
    for j in range(1, len(sets)):
        if len(sets[j]) > len(sets[j - 1]):
            return j, sorted(set(sets[j]) - set(sets[j - 1]))[0], j - 1
    return ()


def _first_alone(sets):
    for j, own in enumerate(sets):
        for layer in own:
            if layer not in sets[0]:
                return j, layer, 0
    return ()


def _latest(sets):
    for j, own in enumerate(sets):
        for layer in own:
            for i in reversed(range(j)):
                if layer not in sets[i]:
                    return j, layer, i
    return ()


find_missing_key = Exercise(
    key="find_missing_key", title="The missing key",
    prompt="`sets[j]` lists the layers that position j runs, ascending. A position attends, in each layer that it runs, to all earlier "
           "positions. Return `(j, layer, i)`: the first position j that misses a key, its lowest such layer, and the earliest "
           "position i without that key; or `()` if no key is missing.",
    stub='''def find_missing_key(sets: list[list[int]]) -> tuple[int, ...]:
    raise NotImplementedError  # yours''',
    test=_check_missing,
    hints=("Three loops: positions, the layers of each, and the positions before it.",
           "[[0, 3], [0, 2]] has falling depths and still misses a key: (1, 2, 0)."),
    difficulty=1, minutes=8, reference=_missing,
    wrong=[(_other_way, "a later token runs a layer"), (_depths_alone, "compare the sets"), (_first_alone, "not just the first"),
           (_latest, "earliest position")])

EXERCISES = [skip_layers, find_missing_key]
