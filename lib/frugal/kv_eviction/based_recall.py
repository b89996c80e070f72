"""What the BASED comparison measures: recall by number of pairs, bytes of real state, milliseconds a token.

Source: the MQAR experiment and the generation-speed figure of arXiv 2402.18668, scaled down.
"""

import numpy as np
import torch

from frugal.data.mqar import MQARTask, accuracy, mqar_batch
from frugal.models.based_lm import BasedLM, decode_all

__all__ = ["CONFIGURATIONS", "HELD_OUT_SEED", "TEST_PAIRS", "TEST_TOKENS", "evaluate", "recall"]

CONFIGURATIONS = ["attention", "taylor_16", "taylor_8", "window_16", "window_64", "taylor_4", "taylor_8+window_16", "gated_74",
                  "elu_73", "taylor_24", "window_32", "window_128", "window_8", "taylor_4+window_64", "relu_73", "gated_16"]
HELD_OUT_SEED = 1_000_003
TEST_PAIRS, TEST_TOKENS = (4, 8, 16, 32, 64), 256
TRAINED_LENGTHS = {4: 64, 8: 64, 16: 128, 32: 128, 64: 256}


@torch.no_grad()
def recall(model: BasedLM, num_pairs: int, num_examples: int = 128, length: int | None = None, seed: int = HELD_OUT_SEED,
           recurrent: bool = True) -> float:
    """Share of asked keys answered with their value, 0..1, by real token-by-token decoding (or in the parallel form)."""
    task = MQARTask(length or TRAINED_LENGTHS.get(num_pairs, 4 * num_pairs), num_pairs, model.embed.num_embeddings)
    tokens, labels = mqar_batch(task, num_examples, np.random.default_rng([seed, num_pairs]))
    logits = decode_all(model, tokens)[0] if recurrent else model(tokens)
    return accuracy(logits.argmax(-1), labels)


def evaluate(model: BasedLM) -> dict:
    """Recall on held-out data for every number of pairs, by token-by-token decoding, at the trained lengths."""
    return {"recall": {str(n): round(recall(model, n), 4) for n in TEST_PAIRS}, "held_out_seed": HELD_OUT_SEED, "num_examples": 128,
            "lengths": {str(n): TRAINED_LENGTHS[n] for n in TEST_PAIRS}, "decoding": "token by token"}
def record_rows(): ...
