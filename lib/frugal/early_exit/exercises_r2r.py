"""Exercises on R2R: which differences matter (the label), and where to set the router's threshold."""
import numpy as np

from frugal.data.arithmetic_chains import EOS, STOP, Chain, ChainTokenizer, same_meaning, sentence_start
from frugal.explore.exercises import Exercise, wrong

__all__ = ["EXERCISES", "divergence_label", "recall_threshold"]

TOKENIZER = ChainTokenizer()
PROMPT = Chain(47, (("+", 32), ("-", 85))).prompt()
GOOD = "so (1) 047 plus 32 equals 079 . then (2) 079 minus 85 is 994 . answer 994 ."


def _ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, special=False)


def toy_large(text: list[int]) -> list[int]:
    """A large model in miniature: finishes the sentence that `text` is in. It follows the words and digits that are there, adds up
    rightly where no value digit stands yet, and keeps a wrong digit that does."""
    start = sentence_start(text, len(text) - 1)
    said = text[start:]
    if said[-1] in (STOP, EOS):
        return []
    step = 1 if text[start - 1] == PROMPT[-1] else 2
    plans = [_ids(f"{lead} ({step}) {body} {equals} {value:03d} .") for lead in ("so", "then", "now", "thus")
             for equals in ("equals", "gives", "is", "makes") for body, value in _bodies(step)]
    plans += [_ids(f"answer {value:03d} .") for value in (994, 79)]
    for plan in plans:
        if plan[:len(said)] == said:
            return plan[len(said):]
    return [*_ids("000")[:max(0, 3 - _digits_behind(said))], STOP]              # a wrong digit: the rest is made up


def _digits_behind(said: list[int]) -> int:
    words = [TOKENIZER.token_str(token) for token in said]
    return next((i for i, word in enumerate(reversed(words)) if not word.isdigit()), 0)


def _bodies(step: int) -> list[tuple[str, int]]:
    if step == 1:
        return [("047 plus 32", 79), ("047 added to 32", 79), ("adding 047 and 32", 79), ("047 minus 32", 15), ("047 plus 42", 89)]
    return [("079 minus 85", 994), ("079 less 85", 994), ("lowering 079 by 85", 994), ("079 plus 85", 164)]


def divergence_label_solution(finish, same, prefix, small_token, large_token) -> int:
    """1 when the small model's token leads the large one to a sentence of another meaning, else 0."""
    if small_token == large_token:
        return 0
    start = sentence_start(prefix + [0], len(prefix))
    sentences = [(prefix + [token] + finish(prefix + [token]))[start:] for token in (small_token, large_token)]
    return int(not same(*sentences))


def _places() -> list[tuple[str, list[int], int, int, int]]:
    """(what, prefix, small token, large token, label)."""
    text, at = PROMPT + _ids(GOOD), len(PROMPT)
    def case(what, place, word, label):
        return what, text[:at + place], _ids(word)[0], text[at + place], label
    return [case("the same token", 0, "so", 0), case("another opening", 0, "thus", 0), case("another word for plus", 5, "added to", 0),
            case("another word for equals", 8, "makes", 0), case("another structure", 2, "adding", 0), case("minus in place of plus", 5, "minus", 1),
            case("another digit of the operand", 7, "4", 1), case("another digit of the value", 10, "8", 1),
            case("the answer before the second step", 13, "answer", 1), case("another opening of the second sentence", 13, "now", 0)]


def _check_label(answer) -> None:
    found = [(case, answer(toy_large, same_meaning, list(case[1]), case[2], case[3])) for case in _places()]
    missed = [(case, said) for case, said in found if said != case[4]]
    if not missed:
        return
    (what, prefix, small, large, expected), said = missed[0]
    case = f"{what}: {TOKENIZER.token_str(small)!r} for {TOKENIZER.token_str(large)!r} behind {TOKENIZER.decode(prefix[len(PROMPT):])!r}"
    if said not in (0, 1):
        wrong(f"got {said!r}, expected {expected}", "return 1 for divergent and 0 for identical or neutral", case)
    words = f"got {int(said)}, expected {expected}"
    if len(missed) == len(found):
        wrong(words, "1 is divergent, 0 is identical or neutral: is it turned round?", case)
    if what == "the same token":
        wrong(words, "two equal tokens cannot diverge, whatever follows", case)
    if {c[0] for c, _ in missed} == {"another structure", "another digit of the value"}:
        wrong(words, "the verifier compares whole sentences: does it see each from its first word?", case)
    if expected:
        wrong(words, "does each continuation start from its own token?", case)
    wrong(words, "tokens may differ and mean the same: let both sentences be finished, then ask the verifier", case)


def _all_different(finish, same, prefix, small_token, large_token):
    return int(small_token != large_token)


def _verifies_only_the_rest(finish, same, prefix, small_token, large_token):
    one, two = (finish(prefix + [token]) for token in (small_token, large_token))
    return int(one != two and not same(one, two))


def _turned_round(finish, same, prefix, small_token, large_token):
    return 1 - divergence_label_solution(finish, same, prefix, small_token, large_token)


def _one_prefix(finish, same, prefix, small_token, large_token):
    start = sentence_start(prefix + [0], len(prefix))
    rest = finish(prefix + [large_token])
    sentences = [(prefix + [token] + rest)[start:] for token in (large_token, large_token)]
    return int(not same(*sentences))


divergence_label = Exercise(
    key="divergence_label", title="Which differences matter",
    prompt="Write `label(finish, same, prefix, small_token, large_token)`: 1 when the small model's token is divergent, 0 when it is identical "
           "or neutral. `finish(tokens)` is the large model: it returns the tokens that complete the sentence `tokens` is in. "
           "`same(a, b)` is the verifier: whether two whole sentences mean the same. `sentence_start(tokens, place)` gives the place at "
           "which the sentence of a place starts.",
    stub="from frugal.data.arithmetic_chains import sentence_start\n\n\n"
         "def label(finish, same, prefix, small_token, large_token):\n    raise NotImplementedError  # yours: 0 or 1",
    test=_check_label,
    hints=("Finish the sentence twice with the large model, once from each token.",
           "The verifier reads whole sentences: from the sentence's first token in the prefix to the last finished one."),
    difficulty=2, minutes=12, reference=divergence_label_solution,
    wrong=[(_all_different, "tokens may differ and mean the same"), (_verifies_only_the_rest, "from its first word"),
           (_turned_round, "turned round"), (_one_prefix, "from its own token")])


# -- the threshold ---------------------------------------------------------------------------------------------------------------------

def recall_threshold_solution(scores, divergent, recall=0.95):
    """Of 100 thresholds in 0..1 the one with the lowest false-positive rate whose recall is high enough; ties to the higher one."""
    scores, divergent = np.asarray(scores), np.asarray(divergent, dtype=bool)
    best, lowest = 0.0, 2.0
    for threshold in np.linspace(0, 1, 100):
        routed = scores >= threshold
        if routed[divergent].mean() >= recall and routed[~divergent].mean() <= lowest:
            best, lowest = float(threshold), routed[~divergent].mean()
    return best


def _score_cases():
    for seed, share in ((1, 0.3), (0, 0.05), (2, 0.1), (3, 0.02)):
        rng = np.random.default_rng(seed)
        divergent = rng.random(400) < share
        divergent[0], divergent[1] = True, False
        yield f"seed {seed}", np.clip(rng.normal(0.35 + 0.3 * divergent, 0.15), 0, 1).round(3), divergent


def _check_threshold(answer) -> None:
    for name, scores, divergent in _score_cases():
        got, best = answer(scores.copy(), divergent.copy()), recall_threshold_solution(scores, divergent)
        case = f"{name}, {int(divergent.sum())} of {len(scores)} tokens divergent"
        if not isinstance(got, (int, float)) or not 0 <= got <= 1:
            wrong(f"got {got!r}", "return one number in 0..1", case)
        found, false = ((scores >= got)[part].mean() for part in (divergent, ~divergent))
        lowest = (scores >= best)[~divergent].mean()
        said = f"threshold {got:.3f}: recall {found:.3f}, false positives {false:.3f}; possible with recall 0.95: {lowest:.3f}"
        if found < 0.95 and got == _precision(scores, divergent):
            wrong(said, "is that recall (of the divergent tokens, how many are routed) or precision (of the routed, how many are divergent)?", case)
        if found < 0.95:
            wrong(said, "recall comes first: only thresholds that catch at least 0.95 of the divergent tokens may compete", case)
        if got == 0.0 or false >= 0.999:
            wrong(said, "routing everything always has recall 1: among what is allowed, take the fewest false positives", case)
        if false > lowest:
            wrong(said, "a higher threshold still reaches the recall: go on to the last one that does", case)


def _most_accurate(scores, divergent, recall=0.95):
    return max(np.linspace(0, 1, 100).tolist(), key=lambda t: ((scores >= t) == divergent).mean())


def _everything(scores, divergent, recall=0.95):
    return 0.0


def _first_enough(scores, divergent, recall=0.95):
    allowed = [t for t in np.linspace(0, 1, 100).tolist() if (scores >= t)[divergent].mean() >= recall]
    return allowed[len(allowed) // 2]


def _precision(scores, divergent, recall=0.95):
    for threshold in np.linspace(0, 1, 100).tolist():
        routed = scores >= threshold
        if routed.any() and divergent[routed].mean() >= recall:
            return threshold
    return 1.0


recall_threshold = Exercise(
    key="recall_threshold", title="Where to set the router",
    prompt="Write `threshold(scores, divergent, recall=0.95)`: among the 100 thresholds `np.linspace(0, 1, 100)`, the one with the lowest "
           "false-positive rate of those that route at least `recall` of the divergent tokens. A token is routed when its score is at "
           "least the threshold. On a tie take the higher one. `scores` and `divergent` are arrays with one entry a token.",
    stub="import numpy as np\n\n\ndef threshold(scores, divergent, recall=0.95):\n    raise NotImplementedError  # yours: a number in 0..1",
    test=_check_threshold,
    hints=("Recall counts among the divergent tokens, the false-positive rate among the others.",
           "Both fall as the threshold rises: the answer is the highest threshold with enough recall."),
    difficulty=1, minutes=8, reference=recall_threshold_solution,
    wrong=[(_most_accurate, "recall comes first"), (_everything, "routing everything"), (_first_enough, "a higher threshold still"),
           (_precision, "or precision")])

EXERCISES = [divergence_label, recall_threshold]
