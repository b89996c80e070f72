"""The token mixers of the BASED comparison, each with a parallel form, a real state, and a one-token step.

Source: arXiv 2402.18668, section 5 (short convolution, Taylor attention, sliding window);
`GatedRecurrence` is the scalar-decay form of arXiv 2405.21060 (Mamba-2, section 2), a small stand-in for Mamba.
Differs: no rotary positions in window and full attention (the recall task needs none; the convolution marks the order).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from frugal.kv_eviction import based
from frugal.models import list_weights, load_weights
from frugal.models.based_lm import BasedLM, State

__all__ = [
    "Attention",
    "GatedRecurrence",
    "LinearAttention",
    "ShortConv",
    "Window",
    "available",
    "build",
    "build_mixer",
    "load_based",
    "weights_name",
]

CHUNK = 64  # tokens that the gated recurrence handles at once


class ShortConv(nn.Module):
    """Gated causal convolution of `width` tokens (BaseConv)."""

    def __init__(self, hidden_size: int, width: int = 3):
        super().__init__()
        self.w_in = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.kernel = nn.Parameter(torch.empty(hidden_size, width).uniform_(-1, 1) / width**0.5)
        self.w_out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return based.short_conv(x, self.w_in.weight, self.kernel, self.w_out.weight)

    def new_state(self, batch: int) -> State:
        hidden_size, width = self.kernel.shape
        return {"past": self.kernel.new_zeros(batch, width, hidden_size)}

    def prefill(self, x: Tensor) -> tuple[Tensor, State]:
        state = self.new_state(x.shape[0])
        width = min(state["past"].shape[1], x.shape[1])
        state["past"][:, -width:] = self.w_in(x[:, -width:]).chunk(2, dim=-1)[0]
        return self(x), state

    def step(self, x: Tensor, state: State) -> Tensor:
        return based.short_conv_step(state["past"], x, self.w_in.weight, self.kernel, self.w_out.weight)


class _Projected(nn.Module):
    """Queries and keys of `key_dim`, values of `hidden_size / num_heads`, all per head; no biases."""

    def __init__(self, hidden_size: int, num_heads: int, key_dim: int):
        super().__init__()
        self.num_heads, self.key_dim, self.head_dim = num_heads, key_dim, hidden_size // num_heads
        self.q = nn.Linear(hidden_size, num_heads * key_dim, bias=False)
        self.k = nn.Linear(hidden_size, num_heads * key_dim, bias=False)
        self.v = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o = nn.Linear(hidden_size, hidden_size, bias=False)

    def qkv(self, x: Tensor) -> list[Tensor]:
        pattern = "b t (h d) -> b h t d" if x.ndim == 3 else "b (h d) -> b h d"
        return [rearrange(w(x), pattern, h=self.num_heads) for w in (self.q, self.k, self.v)]

    def out(self, y: Tensor) -> Tensor:
        return self.o(rearrange(y, "b h t d -> b t (h d)" if y.ndim == 4 else "b h d -> b (h d)"))


class LinearAttention(_Projected):
    """Linear attention with a feature map: Taylor (BASED), elu or relu. State: S and z."""

    def __init__(self, hidden_size: int, num_heads: int = 1, feature_dim: int = 16, features: str = "taylor"):
        super().__init__(hidden_size, num_heads, feature_dim)
        self.features = features
        self.num_features = 1 + feature_dim + feature_dim**2 if features == "taylor" else feature_dim

    def forward(self, x: Tensor) -> Tensor:
        return self.out(based.parallel(*self.qkv(x), self.features))

    def new_state(self, batch: int) -> State:
        S, z = based.empty_state(batch, self.num_heads, self.num_features, self.head_dim, like=self.v.weight)
        return {"S": S, "z": z}

    def prefill(self, x: Tensor) -> tuple[Tensor, State]:
        y, S, z = based.chunked_with_state(*self.qkv(x), self.features, CHUNK)
        return self.out(y), {"S": S, "z": z}

    def step(self, x: Tensor, state: State) -> Tensor:
        *_, y = based.recurrent_step(state["S"], state["z"], *self.qkv(x), based.FEATURE_MAPS[self.features])
        return self.out(y)


class Window(_Projected):
    """Softmax attention over the last `window` tokens. State: a ring buffer of that many keys and values."""

    def __init__(self, hidden_size: int, num_heads: int = 1, window: int = 64):
        super().__init__(hidden_size, num_heads, hidden_size // num_heads)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return self.out(based.sliding_window_attention(*self.qkv(x), self.window))

    def new_state(self, batch: int) -> State:
        shape = batch, self.num_heads, self.window, self.head_dim
        return {"keys": self.v.weight.new_zeros(shape), "values": self.v.weight.new_zeros(shape), "num_seen": 0}

    def prefill(self, x: Tensor) -> tuple[Tensor, State]:
        (_, k, v), state, tokens = self.qkv(x), self.new_state(x.shape[0]), x.shape[1]
        slots = torch.arange(max(0, tokens - self.window), tokens)
        state["keys"][:, :, slots % self.window], state["values"][:, :, slots % self.window] = (
            k[:, :, slots],
            v[:, :, slots],
        )
        return self(x), state | {"num_seen": tokens}

    def step(self, x: Tensor, state: State) -> Tensor:
        y = based.window_step(state["keys"], state["values"], state["num_seen"], *self.qkv(x))
        state["num_seen"] += 1
        return self.out(y)


class Attention(_Projected):
    """Full softmax attention. State: a cache of keys and values that grows by one slot a token, in doubling storage."""

    def __init__(self, hidden_size: int, num_heads: int = 1):
        super().__init__(hidden_size, num_heads, hidden_size // num_heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(*self.qkv(x), is_causal=True))

    def new_state(self, batch: int, capacity: int = 16) -> State:
        shape = batch, self.num_heads, capacity, self.head_dim
        return {"keys": self.v.weight.new_zeros(shape), "values": self.v.weight.new_zeros(shape), "num_seen": 0}

    def prefill(self, x: Tensor) -> tuple[Tensor, State]:
        (_, k, v), tokens = self.qkv(x), x.shape[1]
        state = self.new_state(x.shape[0], max(16, 1 << tokens.bit_length()))  # a power of two, with room
        state["keys"][:, :, :tokens], state["values"][:, :, :tokens] = k, v
        return self(x), state | {"num_seen": tokens}

    def step(self, x: Tensor, state: State) -> Tensor:
        q, k, v = self.qkv(x)
        slot = state["num_seen"]
        if slot == state["keys"].shape[2]:
            for name in ("keys", "values"):
                state[name] = torch.cat([state[name], torch.zeros_like(state[name])], dim=2)
        state["keys"][:, :, slot], state["values"][:, :, slot] = k, v
        state["num_seen"] = slot + 1
        y = F.scaled_dot_product_attention(
            q.unsqueeze(2), state["keys"][:, :, : slot + 1], state["values"][:, :, : slot + 1]
        )
        return self.out(y.squeeze(2))


class GatedRecurrence(nn.Module):
    """h_t = a_t h_{t-1} + (dt_t v_t) b_t^T, y_t = h_t c_t + D v_t, gated by SiLU: a decay that depends on the token.

    b and c (`state_dim` numbers) are shared by the heads; each head has its own decay.
    State: hidden_size * state_dim numbers.
    """

    def __init__(self, hidden_size: int, num_heads: int = 2, state_dim: int = 16):
        super().__init__()
        self.num_heads, self.state_dim, self.head_dim = num_heads, state_dim, hidden_size // num_heads
        self.w_in = nn.Linear(hidden_size, 2 * hidden_size + 2 * state_dim + num_heads, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(num_heads))
        self.a_log = nn.Parameter(torch.logspace(-2, -1, num_heads).log())  # heads start remembering 14 to 140 tokens
        self.skip = nn.Parameter(torch.zeros(num_heads))
        self.norm = nn.RMSNorm(hidden_size, eps=1e-5)
        self.o = nn.Linear(hidden_size, hidden_size, bias=False)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        d, n = self.num_heads * self.head_dim, self.state_dim
        gate, v, b, c, dt = self.w_in(x).split([d, d, n, n, self.num_heads], dim=-1)
        dt = F.softplus(dt + self.dt_bias)
        v = F.silu(v).unflatten(-1, (self.num_heads, self.head_dim))
        return F.silu(gate), v, F.silu(b), F.silu(c), dt, -dt * self.a_log.exp()

    def forward(self, x: Tensor) -> Tensor:
        return self.prefill(x)[0]

    def prefill(self, x: Tensor) -> tuple[Tensor, State]:
        gate, v, b, c, dt, log_decay = self.parts(x)
        write, h, ys = dt.unsqueeze(-1) * v, self.new_state(x.shape[0])["h"], []
        hidden = torch.full((CHUNK, CHUNK), float("-inf"), dtype=x.dtype, device=x.device).triu(1)  # the future
        for start in range(0, x.shape[1], CHUNK):  # exact inside a chunk, h between
            part = slice(start, start + CHUNK)
            total = log_decay[:, part].cumsum(1).mT  # (B, H, T)
            size = total.shape[-1]
            fade = (total.unsqueeze(-1) - total.unsqueeze(-2) + hidden[:size, :size]).exp()  # (B, H, T, T)
            weights = (c[:, part] @ b[:, part].mT).unsqueeze(1) * fade
            new = write[:, part].movedim(2, 1)  # (B, H, T, D)
            ys.append(weights @ new + total.exp().unsqueeze(-1) * (c[:, None, part] @ h.mT))
            left = (total[..., -1:] - total).exp().unsqueeze(-1)  # what is left at the chunk's end
            h = total[..., -1, None, None].exp() * h + (left * new).mT @ b[:, None, part]
        y = torch.cat(ys, dim=2).movedim(1, 2) + self.skip.unsqueeze(-1) * v
        return self.o(self.norm(y.flatten(-2)) * gate), {"h": h}

    def new_state(self, batch: int) -> State:
        return {"h": self.o.weight.new_zeros(batch, self.num_heads, self.head_dim, self.state_dim)}

    def step(self, x: Tensor, state: State) -> Tensor:
        gate, v, b, c, dt, log_decay = self.parts(x)
        state["h"].mul_(log_decay.exp()[..., None, None])
        state["h"].add_((dt.unsqueeze(-1) * v).unsqueeze(-1) * b[:, None, None, :])
        y = (state["h"] @ c[:, None, :, None]).squeeze(-1) + self.skip.unsqueeze(-1) * v
        return self.o(self.norm(y.flatten(-2)) * gate)


def build_mixer(spec: str, hidden_size: int, num_heads: int = 1) -> nn.Module:
    """A mixer from its short name: attention, conv, taylor_16, elu_21, relu_21, window_64, gated_21.

    Raises ValueError on an unknown kind, a size that is missing or below 1, or heads that do not divide the width.
    """
    kind, _, size = spec.partition("_")
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(f"num_heads must divide hidden_size {hidden_size}, not {num_heads}")
    if kind in ("attention", "conv") and not size:
        return ShortConv(hidden_size) if kind == "conv" else Attention(hidden_size, num_heads)
    if kind not in ("taylor", "elu", "relu", "window", "gated"):
        raise ValueError(f"a mixer is attention, conv, taylor_F, elu_F, relu_F, window_W or gated_N, not {spec!r}")
    if not size.isdigit() or not 1 <= int(size) <= 4096:
        raise ValueError(f"{spec!r}: {kind} needs a whole number of 1..4096 behind the underscore, not {size!r}")
    if kind == "window":
        return Window(hidden_size, num_heads, int(size))
    if kind == "gated":
        return GatedRecurrence(hidden_size, 2, int(size))
    return LinearAttention(hidden_size, num_heads, int(size), kind)


def build(
    name: str, vocab_size: int = 256, hidden_size: int = 64, num_heads: int = 1, conv: bool = True, seed: int = 0
) -> BasedLM:
    """An untrained model: a short convolution, then the mixers named in `name`, joined by "+" ("taylor_16+window_64").

    conv=False leaves the convolution out: the model then cannot see which value follows which key.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixers = [build_mixer(spec, hidden_size, num_heads) for spec in ["conv"] * conv + name.split("+")]
        return BasedLM(mixers, vocab_size, hidden_size)


def load_based(name: str) -> tuple[BasedLM, dict]:
    """(trained model, card) of a committed configuration: "attention", "taylor_16", "taylor_8+window_16", ...

    "window_W" without weights of its own runs on those of full attention, through a shorter reach: a key that has left
    the window cannot be answered by any weights, and one inside it is answered as before. Its card then says
    `weights_of: attention`. Raises WeightsError when a configuration was not trained.
    """
    borrowed = name.startswith("window_") and "+" not in name and weights_name(name) not in list_weights("based_")
    state, card = load_weights(weights_name("attention" if borrowed else name))
    model = build(name, card["vocab_size"], card["hidden_size"], card["num_heads"])
    model.load_state_dict(state)
    return model.eval(), card | {"configuration": name, "weights_of": card["configuration"]}


def available(names: list[str]) -> list[str]:
    """Those of `names` that `load_based` can load."""
    there = set(list_weights("based_"))
    return [n for n in names if weights_name(n) in there or (n.startswith("window_") and "based_attention" in there)]


def weights_name(name: str) -> str:
    """ "taylor_8+window_16" -> "based_taylor_8_window_16", the file name of its weights."""
    return "based_" + name.replace("+", "_")
