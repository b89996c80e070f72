"""A decoder layer in two compiled calls around the attention, for a few rows on the CPU in fp32.

One decoded token is 121 products and some 600 small operations; launched one by one from Python, those take half as
long again as reading the weights. This path computes the same as `LM._attention` and `LM._mlp`, to fp32 rounding.
`lm.run` asks `serves` in one place; all else (prefill, other dtypes and devices, gradients, no numba, a decoder
that overrides a part) takes the plain code.
"""
import numpy as np
import torch
from torch import Tensor

from frugal.core import kernels
from frugal.core import linear as products
from frugal.core.compiled import share_threads


def serves(lm, x: Tensor) -> bool:
    """Whether `Pass` may run these states (B, T, hidden) through this decoder, and is the faster way."""
    return (lm.fusable and x.is_contiguous() and products.kernel_serves(x, lm.head, x.shape[0] * x.shape[1]))


def fusable(weights: dict[str, Tensor]) -> bool:
    """Whether all weights are plain fp32 matrices in main memory."""
    return all(w.dtype == torch.float32 and w.device.type == "cpu" and w.is_contiguous() and not w.requires_grad
               for w in weights.values())


class Pass:
    """One forward pass of B sequences by T new tokens through a decoder; states are arrays (B * T, hidden)."""

    def __init__(self, lm, cache, positions: Tensor, cos: Tensor, sin: Tensor):
        """positions (B, T); cos, sin: the rotation tables of these positions, (B, T, 1, D)."""
        c = lm.config
        self.lm, self.config, self.cache, self.positions = lm, c, cache, positions
        self.threads, self.shape = share_threads(), tuple(positions.shape)
        self.cos, self.sin = (table.reshape(-1, c.head_dim).numpy() for table in (cos, sin))
        takes_arrays = getattr(cache, "takes_arrays", None)
        self.direct = takes_arrays is not None and takes_arrays(self.shape[1])
        self.position_array = positions.contiguous().numpy()

    def layer(self, i: int, x: np.ndarray) -> np.ndarray:
        """States after layer i; new keys and values go to the cache."""
        c, weights, rows = self.config, self.lm.layers[i], len(x)
        q, k, v = (np.empty((*self.shape, heads, c.head_dim), np.float32)
                   for heads in (c.num_heads, c.num_kv_heads, c.num_kv_heads))
        kernels.before_attention(x, weights["attn_norm"].numpy(), c.norm_eps, weights["qkv"].numpy(), self.cos, self.sin,
                                 q.reshape(rows, c.num_heads, -1), k.reshape(rows, c.num_kv_heads, -1),
                                 v.reshape(rows, c.num_kv_heads, -1), self.threads)
        mixed = self._attend(i, q, k, v)
        out = np.empty_like(x)
        kernels.after_attention(x, mixed.reshape(rows, -1), weights["o"].numpy(), weights["mlp_norm"].numpy(), c.norm_eps,
                                weights["gate_up"].numpy(), weights["down"].numpy(), out, self.threads)
        return out

    def _attend(self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        if self.direct:
            return self.cache.attend_arrays(i, q, k, v, self.position_array, self.threads)
        q, k, v = (torch.from_numpy(part) for part in (q, k, v))
        return self.cache.attend(i, q, k, v, self.positions).contiguous().numpy()

    def logits(self, x: np.ndarray, last_only: bool) -> Tensor:
        """Final norm and output matrix: (B, T, V), or (B, 1, V) of the last tokens."""
        if last_only:
            x = np.ascontiguousarray(x.reshape(*self.shape, -1)[:, -1])
        out = torch.empty(kernels.padded_rows(len(x)), self.config.vocab_size)
        kernels.norm_product(x, self.lm.weights["norm"].numpy(), self.config.norm_eps, self.lm.head.numpy(), out.numpy(),
                             self.threads)
        return out[:len(x)].view(self.shape[0], -1, self.config.vocab_size)

    def run(self, x: Tensor, layers, hidden: bool) -> tuple[np.ndarray, list[Tensor]]:
        """All `layers` on states (B, T, hidden): the states after the last, and with `hidden` those after each."""
        states, shape = [x] if hidden else [], x.shape
        x = x.detach().numpy().reshape(-1, shape[-1])
        for i in layers:
            x = self.layer(i, x)
            if hidden:
                states.append(torch.from_numpy(x).view(shape))
        return x, states
