"""The exercise of notebook 00: the bytes of a key-value cache. Reached as `frugal.explore.exercises.cache_bytes`."""

from .exercises import Exercise, wrong

__all__ = ["EXERCISES", "cache_bytes"]


def _reference(num_layers: int, num_kv_heads: int, head_dim: int, num_tokens: int, bits: int = 16) -> int:
    return 2 * num_layers * num_kv_heads * head_dim * num_tokens * bits // 8


def _one_tensor(num_layers, num_kv_heads, head_dim, num_tokens, bits=16):
    return num_layers * num_kv_heads * head_dim * num_tokens * bits // 8


def _in_bits(num_layers, num_kv_heads, head_dim, num_tokens, bits=16):
    return 2 * num_layers * num_kv_heads * head_dim * num_tokens * bits


def _always_16(num_layers, num_kv_heads, head_dim, num_tokens, bits=16):
    return 2 * num_layers * num_kv_heads * head_dim * num_tokens * 2


def _one_layer(num_layers, num_kv_heads, head_dim, num_tokens, bits=16):
    return 2 * num_kv_heads * head_dim * num_tokens * bits // 8


def _one_token(num_layers, num_kv_heads, head_dim, num_tokens, bits=16):
    return 2 * num_layers * num_kv_heads * head_dim * bits // 8


CASES = [(30, 3, 64, 1, 16), (30, 3, 64, 1000, 32), (32, 8, 128, 4096, 4)]
MISTAKES = {
    _one_tensor: "half of it: does a slot hold a key only, or a key and a value?",
    _in_bits: "eight times too much: are these bits or bytes?",
    _always_16: "right for 16 bits only: where does `bits` go in?",
    _one_layer: "that is the cache of one layer: how many layers keep one?",
    _one_token: "that is the cache of one token: how many are held?",
}


def _check(answer) -> None:
    got = {case: answer(*case) for case in CASES}
    for case in CASES:
        want, call = _reference(*case), f"cache_bytes{case}"
        if got[case] == want:
            continue
        for mistake, hint in MISTAKES.items():
            if all(got[other] == mistake(*other) for other in CASES):
                wrong(f"got {got[case]:,}, expected {want:,}", hint, call)
        wrong(f"got {got[case]}, expected {want}", "which of the five numbers multiply, and what does 8 have to do with it?", call)


cache_bytes = Exercise(
    key="cache_bytes",
    title="The bytes of a cache",
    prompt="Write `cache_bytes`: the bytes that one sequence of `num_tokens` tokens keeps, as a whole number. Each layer "
    "keeps keys and values of `head_dim` numbers for each of its `num_kv_heads` heads; a number takes `bits` bits.",
    stub="""def cache_bytes(num_layers: int, num_kv_heads: int, head_dim: int, num_tokens: int, bits: int = 16) -> int:
    raise NotImplementedError  # yours""",
    test=_check,
    hints=("What does one slot of one head in one layer hold?", "Two tensors a layer; a byte is 8 bits; divide last, so that it stays whole."),
    difficulty=1,
    minutes=5,
    reference=_reference,
    wrong=[(fn, hint.split(":")[0]) for fn, hint in MISTAKES.items()],
)
EXERCISES = [cache_bytes]
