"""Mini-LM: a twelve-layer decoder on Python text that tolerates skipped layers; weights come from recipes/train_mini_lm.py.

Source: arXiv 2307.02628 (SkipDecode), section 3: the bottom is skipped, a warm-up layer and the top layers run;
arXiv 2404.16710 (LayerSkip), section 4: layer dropout that grows with depth, and a loss at early exits.
Differs: trained from scratch for both at once (both papers start from a trained model); layers are dropped for a whole
batch, not per sample; the loss sees two random exits a batch; kept prefixes of positions stand for the depth schedule.
Shapes: B batch, T tokens, V vocabulary.
"""
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.lm import LM, LMConfig
from frugal.data.code_text import END_OF_TEXT, VOCAB_SIZE, code_tokenizer
from frugal.models import load_weights
from frugal.models.mini_tim import initial_weights, rope_table, rotate

CONTEXT = 256                                   # positions the model was trained on
SHAPE = dict(vocab_size=VOCAB_SIZE, hidden_size=192, num_layers=12, num_heads=6, num_kv_heads=2, head_dim=32,
             intermediate_size=512, rope_theta=10000.0, norm_eps=1e-5, max_positions=CONTEXT, tie_embeddings=True)


def fresh_weights(seed: int = 0, shape: dict = SHAPE) -> dict[str, Tensor]:
    """Random fp32 weights in the fused layout of LM; the output matrix is the embedding."""
    weights = initial_weights(seed, shape)
    if shape["tie_embeddings"]:
        del weights["head"]
    return weights


def _norm(x: Tensor, weight: Tensor, shape: dict) -> Tensor:
    return F.rms_norm(x, (shape["hidden_size"],), weight, shape["norm_eps"])


def _attend(q: Tensor, k: Tensor, v: Tensor, rows: int = 128) -> Tensor:
    """Causal attention of (B, H, T, D) over (B, K, T, D) in blocks of query rows.

    By hand, since the backward pass of PyTorch's fused attention takes three times as long on a CPU in bfloat16.
    """
    num_tokens, groups = q.shape[2], q.shape[1] // k.shape[1]
    q = q.unflatten(1, (k.shape[1], groups)) * q.shape[-1] ** -0.5                       # (B, K, G, T, D)
    out = []
    for first in range(0, num_tokens, rows):
        last = min(first + rows, num_tokens)
        block = q[:, :, :, first:last].flatten(2, 3)                                     # (B, K, G * rows, D)
        future = torch.full((last - first, last), float("-inf"), dtype=q.dtype).triu(first + 1)
        scores = (block @ k[:, :, :last].transpose(-1, -2)).unflatten(2, (groups, -1)) + future
        mixed = scores.softmax(-1).to(v.dtype).flatten(2, 3) @ v[:, :, :last]
        out.append(mixed.unflatten(2, (groups, -1)))
    return torch.cat(out, dim=3).flatten(1, 2)


def _block(weights: dict, i: int, x: Tensor, cos: Tensor, sin: Tensor, shape: dict) -> Tensor:
    """One decoder block on states (B, T, hidden), with gradients."""
    heads, kv_heads, dim = shape["num_heads"], shape["num_kv_heads"], shape["head_dim"]
    qkv = F.linear(_norm(x, weights[f"layers.{i}.attn_norm"], shape), weights[f"layers.{i}.qkv"])
    q, k, v = qkv.unflatten(-1, (-1, dim)).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
    mixed = _attend(q, k, v)
    x = x + F.linear(mixed.transpose(1, 2).flatten(2), weights[f"layers.{i}.o"])
    gate, up = F.linear(_norm(x, weights[f"layers.{i}.mlp_norm"], shape), weights[f"layers.{i}.gate_up"]).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, weights[f"layers.{i}.down"])


def training_states(weights: dict[str, Tensor], tokens: Int[Tensor, "b t"], reach: list[int] | None = None,
                    exits: tuple[int, ...] = (), shape: dict = SHAPE) -> list[Tensor]:
    """States (B, T, hidden) after each number of layers in `exits`, then the last ones, with gradients.

    reach: for each layer the number of leading positions that run it (default all). A depth schedule that never
    increases is exactly this: a skipped layer is skipped by all later positions too, so that their keys are not missed.
    """
    num_tokens = tokens.shape[1]
    reach = [num_tokens] * shape["num_layers"] if reach is None else reach
    cos, sin = rope_table(num_tokens, shape["head_dim"], shape["rope_theta"])
    x, states = F.embedding(tokens, weights["embed"]), []
    for i, count in enumerate(reach):
        if count == num_tokens:
            x = _block(weights, i, x, cos, sin, shape)
        elif count:
            x = torch.cat([_block(weights, i, x[:, :count], cos[:count], sin[:count], shape), x[:, count:]], dim=1)
        if i + 1 in exits:
            states.append(x)
    return [*states, x]


def training_logits(weights: dict[str, Tensor], states: Float[Tensor, "b t h"], shape: dict = SHAPE) -> Float[Tensor, "b t v"]:
    """Logits of states, with gradients; the same output matrix at every depth."""
    return F.linear(_norm(states, weights["norm"], shape), weights["embed" if shape["tie_embeddings"] else "head"])


def make_lm(weights: dict[str, Tensor], shape: dict = SHAPE) -> LM:
    """An LM over the given weights, with the tokenizer of the code corpus."""
    config = LMConfig(**shape, bos_id=END_OF_TEXT, eos_ids=(END_OF_TEXT,))
    return LM(config, {name: value.detach().float().contiguous() for name, value in weights.items()}, code_tokenizer(), name="mini-lm")


def load_mini_lm() -> LM:
    """The trained mini-LM from the package's weights. Raises WeightsError when they are missing or damaged."""
    weights, card = load_weights("mini_lm")
    return make_lm(weights, card["shape"])
