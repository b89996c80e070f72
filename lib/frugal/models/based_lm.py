"""A small language model made of token mixers that can each run all tokens at once, or one by one over a state.

embedding -> [RMSNorm -> mixer -> +] per layer -> RMSNorm -> tied head. No positions and no MLP: the 2-layer form of
Zoology (arXiv 2312.04927), which is enough for recall. The mixers come from a family
(`frugal.kv_eviction.based_layers`).
The state of every mixer is passed in and out; the model itself remembers nothing.
"""

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["BasedLM", "Mixer", "State", "decode_all", "state_bytes"]

State = dict[str, Tensor | int]  # tensors of one layer, plus "num_seen" where a ring buffer needs it


class Mixer(Protocol):
    """What a layer offers. `forward` and repeated `step` give the same outputs."""

    def forward(self, x: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "batch tokens d"]: ...

    def new_state(self, batch: int) -> State: ...

    def prefill(self, x: Float[Tensor, "batch tokens d"]) -> tuple[Float[Tensor, "batch tokens d"], State]: ...

    def step(self, x: Float[Tensor, "batch d"], state: State) -> Float[Tensor, "batch d"]: ...


class BasedLM(nn.Module):
    """Token mixers between a tied embedding and head.

    mixers: modules that follow `Mixer`. Raises ValueError on sizes below 1 or no mixers.
    """

    def __init__(self, mixers: list[nn.Module], vocab_size: int = 256, hidden_size: int = 64):
        super().__init__()
        if vocab_size < 2 or hidden_size < 1 or not mixers:
            raise ValueError(
                f"vocab_size >= 2, hidden_size >= 1 and a mixer are needed, "
                f"not {vocab_size}, {hidden_size}, {len(mixers)} mixers"
            )
        self.embed = nn.Embedding(vocab_size, hidden_size)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.mixers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(nn.RMSNorm(hidden_size, eps=1e-5) for _ in mixers)
        self.norm = nn.RMSNorm(hidden_size, eps=1e-5)

    def hidden(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens d"]:
        """Normed last hidden states of all tokens, by the parallel form of every mixer."""
        x = self.embed(self._checked(tokens))
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.norm(x)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocab"]:
        """Logits of all tokens at once."""
        return self.hidden(tokens) @ self.embed.weight.T

    def new_state(self, batch: int = 1) -> list[State]:
        """The memory before the first token, one entry per layer. Raises ValueError when batch is below 1."""
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        return [mixer.new_state(batch) for mixer in self.mixers]

    @torch.no_grad()
    def prefill(self, tokens: Int[Tensor, "batch tokens"]) -> tuple[Float[Tensor, "batch vocab"], list[State]]:
        """Read a whole prompt at once: logits after its last token, and the state to go on from."""
        x, states = self.embed(self._checked(tokens)), []
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            y, state = mixer.prefill(norm(x))
            x = x + y
            states.append(state)
        return self.norm(x[:, -1]) @ self.embed.weight.T, states

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " batch"], state: list[State]) -> Float[Tensor, "batch vocab"]:
        """Logits after one more token of each sequence; `state` is updated in place."""
        x = self.embed(self._checked(tokens))
        for norm, mixer, own in zip(self.norms, self.mixers, state, strict=True):
            x = x + mixer.step(norm(x), own)
        return self.norm(x) @ self.embed.weight.T

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def _checked(self, tokens: Tensor) -> Tensor:
        if tokens.numel() == 0:
            raise ValueError("no tokens: give at least one token per sequence")
        if tokens.min() < 0 or tokens.max() >= self.embed.num_embeddings:
            raise ValueError(
                f"token ids go from 0 to {self.embed.num_embeddings - 1}, not {int(tokens.min())}..{int(tokens.max())}"
            )
        return tokens


def decode_all(
    model: BasedLM, tokens: Int[Tensor, "batch tokens"]
) -> tuple[Float[Tensor, "batch tokens vocab"], list[State]]:
    """Logits of all tokens, one token after the other through the real state; and that state."""
    state = model.new_state(tokens.shape[0])
    return torch.stack([model.step(tokens[:, t], state) for t in range(tokens.shape[1])], dim=1), state


def state_bytes(state: list[State]) -> int:
    """Bytes of the storages that hold the state: what is really allocated, no formula."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for own in state
        for t in own.values()
        if isinstance(t, Tensor)
    }
    return sum(storages.values())
