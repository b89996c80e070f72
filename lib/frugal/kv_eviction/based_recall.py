"""What the BASED comparison measures: recall by number of pairs, bytes of real state, seconds a token.

Source: the MQAR experiment and the generation-speed figure of arXiv 2402.18668, scaled down.
Every recall here comes from decoding token by token through the real state, unless `recurrent=False`.
"""

import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from frugal.core.measure import hardware
from frugal.data.mqar import MQARTask, accuracy, mqar_batch
from frugal.kv_eviction.based_layers import available, build, load_based
from frugal.models.based_lm import BasedLM, State, decode_all, state_bytes

__all__ = [
    "CONFIGURATIONS",
    "HELD_OUT_SEED",
    "LABELS",
    "TEST_PAIRS",
    "attention_maps",
    "evaluate",
    "recall",
    "recall_rows",
    "speed_rows",
]

CONFIGURATIONS = [
    "attention",
    "taylor_4",
    "taylor_8",
    "taylor_16",
    "taylor_24",
    "window_8",
    "window_16",
    "window_32",
    "window_64",
    "window_128",
    "taylor_8+window_16",
    "taylor_4+window_64",
    "gated_21",
    "elu_21",
    "relu_21",
]
LABELS = {
    "attention": "attention",
    "taylor": "Taylor (BASED)",
    "window": "window",
    "gated": "gated recurrence",
    "elu": "linear, elu",
    "relu": "linear, relu",
    "taylor+window": "Taylor + window (BASED)",
}
HELD_OUT_SEED = 1_000_003
TEST_PAIRS = (4, 8, 16, 32, 64)
TRAINED_TOKENS = {4: 64, 8: 64, 16: 128, 32: 128, 64: 256}
SPEED_CONFIGURATIONS = ("attention", "window_64", "taylor_16", "taylor_16+window_64")
SPEED_TOKENS = (256, 512, 1024, 2048, 4096, 8192)


def kind(name: str) -> str:
    """ "taylor_8+window_16" -> "taylor+window"."""
    return "+".join(part.split("_")[0] for part in name.split("+"))


@torch.no_grad()
def recall(
    model: BasedLM,
    num_pairs: int,
    num_examples: int = 128,
    tokens: int | None = None,
    seed: int = HELD_OUT_SEED,
    recurrent: bool = True,
) -> tuple[float, int]:
    """(share of asked keys answered with their value, 0..1; bytes of state per sequence after the last token).

    tokens: length of an example; by default the length that this number of pairs was trained with.
    In the parallel form there is no state, and the bytes are 0.
    """
    task = MQARTask(tokens or TRAINED_TOKENS.get(num_pairs, 4 * num_pairs), num_pairs, model.embed.num_embeddings)
    text, labels = mqar_batch(task, num_examples, np.random.default_rng([seed, num_pairs]))
    logits, state = decode_all(model, text) if recurrent else (model(text), [])
    return accuracy(logits.argmax(-1), labels), state_bytes(state) // num_examples


def evaluate(model: BasedLM) -> dict:
    """Metrics of a card: recall on held-out data for every number of pairs, at the trained lengths."""
    return {
        "recall": {str(n): round(recall(model, n)[0], 4) for n in TEST_PAIRS},
        "held_out_seed": HELD_OUT_SEED,
        "num_examples": 128,
        "lengths": {str(n): TRAINED_TOKENS[n] for n in TEST_PAIRS},
        "decoding": "token by token",
    }


def recall_rows(names: list[str] | None = None, num_examples: int = 128, seed: int = HELD_OUT_SEED) -> list[dict]:
    """One row per (configuration, number of pairs, length): the trained length, and 256 tokens. recall is 0..1."""
    names = names or available(CONFIGURATIONS)
    cells = [(n, t) for n in TEST_PAIRS for t in sorted({TRAINED_TOKENS[n], 256})]
    rows = []
    for name in tqdm(names, desc="recall", delay=2, leave=False, disable=None):
        model, card = load_based(name)
        for num_pairs, tokens in cells:
            share, num_bytes = recall(model, num_pairs, num_examples, tokens, seed)
            rows.append(
                {
                    "family": "kv_eviction",
                    "method": "based",
                    "workload": "mqar",
                    "configuration": name,
                    "kind": kind(name),
                    "num_pairs": num_pairs,
                    "tokens": tokens,
                    "trained": tokens == TRAINED_TOKENS[num_pairs],
                    "recall": round(share, 4),
                    "state_bytes": num_bytes,
                    "num_examples": num_examples,
                    "seed": seed,
                    "weights_of": card["weights_of"],
                    "num_parameters": card["num_parameters"],
                    "model_hash": card["sha256"][:16],
                }
            )
    return rows


def widen(state: list[State], batch: int) -> list[State]:
    """The state of one sequence, copied for `batch` sequences (real copies, no views)."""
    return [
        {key: t.repeat_interleave(batch, 0) if isinstance(t, Tensor) else t for key, t in own.items()} for own in state
    ]


def speed_rows(
    names: tuple[str, ...] = SPEED_CONFIGURATIONS,
    tokens: tuple[int, ...] = SPEED_TOKENS,
    batches: tuple[int, ...] = (1, 4, 16),
    steps: int = 16,
    repeats: int = 5,
    hidden_size: int = 256,
    num_heads: int = 4,
) -> list[dict]:
    """Measured seconds per decoding step after `tokens` tokens, over the real state (one thread).

    The models are untrained and 256 wide: speed does not depend on the values of weights. A prompt is read, then
    `steps` tokens are decoded `repeats` times, the configurations in turn.
    Columns: step_s (median of repeats, wall clock), cpu_step_s (the same, process time),
    spread_s (largest minus smallest wall clock), state_bytes per sequence.
    Raises ValueError when `tokens` is too short for what the measurement itself decodes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cells = [(t, b) for t in tokens for b in batches]
        return [
            row
            for t, b in tqdm(cells, desc="speed", disable=None)
            for row in _speed_cell(names, t, b, steps, repeats, hidden_size, num_heads)
        ]
    finally:
        torch.set_num_threads(threads)


def _speed_cell(
    names: tuple[str, ...], tokens: int, batch: int, steps: int, repeats: int, hidden_size: int, num_heads: int
) -> Iterator[dict]:
    if tokens <= steps * (repeats + 1):
        raise ValueError(
            f"tokens must be above {steps * (repeats + 1)} (what the measurement itself decodes), not {tokens}"
        )
    models, states, wall, cpu = {}, {}, {n: [] for n in names}, {n: [] for n in names}
    prompt = torch.randint(256, (1, tokens - steps * (repeats + 1)), generator=torch.Generator().manual_seed(0))
    for name in names:
        models[name] = build(name, 256, hidden_size, num_heads)
        states[name] = widen(models[name].prefill(prompt)[1], batch)
    token = torch.zeros(batch, dtype=torch.int64)
    for _ in range(repeats + 1):  # the first one warms up
        for name in names:
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(steps):
                models[name].step(token, states[name])
            wall[name].append((time.perf_counter() - start) / steps)
            cpu[name].append((time.process_time() - cpu_start) / steps)
    for name in names:
        yield {
            "family": "kv_eviction",
            "method": "based",
            "workload": "based_speed",
            "configuration": name,
            "kind": kind(name),
            "tokens": tokens,
            "batch": batch,
            "step_s": statistics.median(wall[name][1:]),
            "cpu_step_s": statistics.median(cpu[name][1:]),
            "spread_s": max(wall[name][1:]) - min(wall[name][1:]),
            "state_bytes": state_bytes(states[name]) // batch,
            "hidden_size": hidden_size,
            "num_heads": num_heads,
            "threads": 1,
            "hardware": hardware(),
        }


@torch.no_grad()
def attention_maps(
    name: str = "taylor_16", num_pairs: int = 8, window: int = 8, tokens: int = 32, seed: int = 0
) -> list[dict]:
    """Rows (map, query, key, weight, token) of three attention matrices from the same trained queries and keys.

    "exp": softmax. "taylor": 1 + z + z^2/2 in place of exp(z). "window + taylor": exp for keys closer than
    `window` tokens, Taylor for the others, one normaliser: what the two layers of BASED see together.
    Rows sum to 1; keys after the query are left out.
    """
    model, _ = load_based(name)
    text, _ = mqar_batch(MQARTask(tokens, num_pairs), 1, np.random.default_rng(seed))
    x = model.embed(text)
    x = x + model.mixers[0](model.norms[0](x))
    q, k, _ = (part[0, 0] for part in model.mixers[1].qkv(model.norms[1](x)))  # (T, f)
    z = q @ k.mT / q.shape[-1] ** 0.5
    age = torch.arange(tokens)[:, None] - torch.arange(tokens)
    exact, taylor = z.exp(), 1 + z + z * z / 2
    maps = {"exp": exact, "taylor": taylor, "window + taylor": torch.where(age < window, exact, taylor)}
    rows = []
    for label, weights in maps.items():
        weights = weights.tril()
        weights = weights / weights.sum(-1, keepdim=True)
        rows += [
            {
                "map": label,
                "query": i,
                "key": j,
                "weight": round(weights[i, j].item(), 4),
                "query_token": int(text[0, i]),
                "key_token": int(text[0, j]),
            }
            for i in range(tokens)
            for j in range(i + 1)
        ]
    return rows
