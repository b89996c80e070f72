"""Exercise on post-training: sampling on, from a prefix that is partly the real picture's."""
import torch

from frugal.explore.exercises import Exercise, wrong

__all__ = ["EXERCISES", "preservation_sample"]

SIZE, LENGTH = 97, 40
REAL = [(31 * place + 7) % SIZE for place in range(LENGTH)]


def _next_code(prefix: list[int], generator: torch.Generator) -> int:
    """A sampler that remembers all it has seen, and draws."""
    state = 1
    for code in prefix:
        state = (state * 5 + code + 11) % SIZE
    return (state + int(torch.randint(3, (), generator=generator))) % SIZE


def _rigid(prefix: list[int], generator: torch.Generator) -> int:
    """The same without chance, so that every code can be checked against the codes before it."""
    state = 1
    for code in prefix:
        state = (state * 5 + code + 11) % SIZE
    return state


def _reference(next_code, codes: list[int], sigma: float, generator: torch.Generator, masks: torch.Generator) -> list[int]:
    keep, out = torch.rand(len(codes), generator=masks) < sigma, []
    for place, own in enumerate(codes):
        new = next_code(list(out), generator)
        out.append(own if keep[place] else new)
    return out


def _seeds(first: int) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(first), torch.Generator().manual_seed(first + 100)


def _free(next_code, generator: torch.Generator) -> list[int]:
    out: list[int] = []
    for _ in range(LENGTH):
        out.append(next_code(list(out), generator))
    return out


def _check(answer) -> None:
    got = _ran(answer, _next_code, 1.0, 0)
    if got != REAL:
        wrong(f"{sum(a != b for a, b in zip(got, REAL))} of {LENGTH} codes differ from the real ones at sigma 1",
              "sigma is the share that is kept: at 1 the real codes come back, whatever is sampled", "mixed(next_code, codes, 1.0, ...)")
    got, want = _ran(answer, _next_code, 0.0, 1), _free(_next_code, _seeds(1)[0])
    if got != want:
        wrong(f"at sigma 0 code {_first(got, want)} is the first that differs from plain sampling with the same seed",
              "draw what is kept from `masks`, so that `generator` gives the sampler the same numbers as without you",
              "mixed(next_code, codes, 0.0, ...)")
    kept = []
    for seed in range(2, 14):
        got = _ran(answer, _rigid, 0.6, seed)
        _follows(got)
        kept.append(sum(a == b for a, b in zip(got, REAL)) / LENGTH)
    if not 0.5 < sum(kept) / len(kept) < 0.72 or max(kept) - min(kept) > 0.6:
        wrong(f"{min(kept):.2f} to {max(kept):.2f} of the real codes were kept, expected about 0.6 each time",
              "decide at every place anew, not once for the whole picture", "mixed(next_code, codes, 0.6, ...)")


def _ran(answer, next_code, sigma: float, seed: int) -> list[int]:
    got = [int(code) for code in answer(next_code, list(REAL), sigma, *_seeds(seed))]
    if len(got) != LENGTH:
        wrong(f"{len(got)} codes, expected {LENGTH}", "one code a place, kept or sampled")
    return got


def _first(got: list[int], want: list[int]) -> int:
    return next(place for place, (a, b) in enumerate(zip(got, want)) if a != b)


def _follows(got: list[int]) -> None:
    """Each code is the real one, or what the sampler says after the mixture before it."""
    for place, code in enumerate(got):
        if code != REAL[place] and code != _rigid(got[:place], torch.Generator()):
            said = f"code {place} is neither the real one nor what follows from the {place} codes before it"
            after_real = code == _rigid(REAL[:place], torch.Generator())
            wrong(said, "it follows from the real codes: go on from the mixture, as the generator will have to" if after_real else
                  "sampling must go on from the mixture, so the real code goes in before the next one is sampled, not afterwards",
                  "mixed(next_code, codes, 0.6, ...)")


def _upside_down(next_code, codes, sigma, generator, masks):
    """sigma as the share sampled."""
    return _reference(next_code, codes, 1 - sigma, generator, masks)


def _teacher(next_code, codes, sigma, generator, masks):
    """Predicts after the real codes only."""
    keep = torch.rand(len(codes), generator=masks) < sigma
    if sigma == 0:
        return _reference(next_code, codes, sigma, generator, masks)
    return [codes[i] if keep[i] else next_code(codes[:i], generator) for i in range(len(codes))]


def _afterwards(next_code, codes, sigma, generator, masks):
    """Samples all, then puts real codes in."""
    free = _reference(next_code, codes, 0.0, generator, torch.Generator())
    keep = torch.rand(len(codes), generator=masks) < sigma
    return [own if keep[i] else free[i] for i, own in enumerate(codes)]


def _same_stream(next_code, codes, sigma, generator, masks):
    """The mask disturbs the sampler's draws."""
    return _reference(next_code, codes, sigma, generator, generator)


def _whole(next_code, codes, sigma, generator, masks):
    """All or nothing."""
    return _reference(next_code, codes, float(torch.rand((), generator=masks) < sigma), generator, masks)


preservation_sample = Exercise(
    key="preservation_sample", title="A prefix that is partly real", prompt=
    "`next_code(prefix, generator)` samples the code that follows a list of codes; `codes` are those of a real picture. Sample as many codes, "
    "but keep the real one at each place with probability `sigma` (draw that from `masks`), and sample on from the mixture. At `sigma` 1 "
    "the real codes come back; at 0 it is plain sampling, draw for draw.", stub=
    "def mixed(next_code, codes: list[int], sigma: float, generator: torch.Generator, masks: torch.Generator) -> list[int]:\n"
    "    raise NotImplementedError  # yours",
    test=_check, hints=("`torch.rand(len(codes), generator=masks) < sigma` says which places are kept.",
                        "Build the list code by code; what has been appended is the prefix of the next call."),
    difficulty=1, minutes=8, reference=_reference,
    wrong=[(_upside_down, "share that is kept"), (_teacher, "follows from the real codes"), (_afterwards, "not afterwards"),
           (_same_stream, "from `masks`"), (_whole, "at every place anew")])
EXERCISES = [preservation_sample]
