"""The names and shapes of a decoder's weights, and how the parts of a checkpoint become the fused matrices of LM.

A checkpoint keeps q, k, v, gate and up apart; LM multiplies by the fused matrix at once, which reads the same bytes
in fewer calls. Both readers (GGUF, safetensors folder) name their parts as below.
"""
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from frugal.core.lm import LMConfig
from frugal.core.tokenizer import Tokenizer

Shape = tuple[int, ...]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: damaged, incomplete, or of another architecture. The message says which."""


@runtime_checkable
class Source(Protocol):
    """A checkpoint on disk, checked when opened. `part` reads one weight, float32 or as stored."""
    label: str
    config: LMConfig

    def part(self, name: str) -> Tensor: ...

    def part_names(self) -> set[str]: ...

    def tokenizer(self) -> Tokenizer: ...


def checked_config(label: str, **fields: Any) -> LMConfig:
    """LMConfig of these fields; CheckpointError where they do not fit together."""
    try:
        if fields["head_dim"] % 2:
            raise ValueError(f"head_dim={fields['head_dim']} is odd, and RoPE turns pairs")
        return LMConfig(**fields)
    except ValueError as error:
        raise CheckpointError(f"{label}: {error}. The configuration is damaged; get it again.") from error


def part_shapes(config: LMConfig) -> dict[str, Shape]:
    """Shape of every part that a checkpoint with this configuration must hold; "head" only where it is not tied."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    q_rows = config.num_heads * config.head_dim
    kv_rows = config.num_kv_heads * config.head_dim
    shapes: dict[str, Shape] = {"embed": (config.vocab_size, hidden), "norm": (hidden,)}
    if not config.tie_embeddings:
        shapes["head"] = (config.vocab_size, hidden)
    for i in range(config.num_layers):
        for name, shape in {"attn_norm": (hidden,), "q": (q_rows, hidden), "k": (kv_rows, hidden),
                            "v": (kv_rows, hidden), "o": (hidden, q_rows), "mlp_norm": (hidden,),
                            "gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}.items():
            shapes[f"layers.{i}.{name}"] = shape
    return shapes


_FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_FIRST = {parts[0]: fused for fused, parts in _FUSED.items()}
_REST = {part for parts in _FUSED.values() for part in parts[1:]}


def fused_parts(config: LMConfig) -> dict[str, list[str]]:
    """For each weight of LM, the parts it is stacked from, top row first."""
    plan = {}
    for name in part_shapes(config):
        prefix, _, last = name.rpartition(".")
        if last in _REST:
            continue
        if last in _FIRST and prefix:
            plan[f"{prefix}.{_FIRST[last]}"] = [f"{prefix}.{part}" for part in _FUSED[_FIRST[last]]]
        else:
            plan[name] = [name]
    return plan


def fused_weights(source: Source, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The weights of LM one at a time, so that no second copy of the model is ever in memory."""
    for name, parts in fused_parts(source.config).items():
        tensors = [_checked(source, part) for part in parts]
        yield name, (torch.cat(tensors) if len(tensors) > 1 else tensors[0]).to(dtype).contiguous()


def split_weights(config: LMConfig, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The way back: the parts of fused weights, as views. What comparisons with other libraries need."""
    shapes = part_shapes(config)
    for name, parts in fused_parts(config).items():
        yield from zip(parts, weights[name].split([shapes[part][0] for part in parts]), strict=True)


def check_parts(source: Source, name_in_file: Callable[[str], str], num_tensors: int) -> None:
    """CheckpointError when parts are missing. num_tensors: how many tensors of any name the file holds."""
    if source.config.num_layers > num_tensors:          # a damaged number must not have us list 10^9 names
        raise CheckpointError(f"{source.label} says it has {source.config.num_layers} layers and holds {num_tensors} "
                              "weights. The file is damaged or incomplete; get it again.")
    expected, found = part_shapes(source.config), source.part_names()
    missing = [part for part in expected if part not in found]
    if missing:
        raise CheckpointError(f"{source.label} lacks {len(missing)} weights, the first {name_in_file(missing[0])!r}; "
                              f"its configuration asks for {len(expected)}. Get a complete file.")


def _checked(source: Source, part: str) -> Tensor:
    tensor = source.part(part)
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{source.label}: weight {part!r} holds NaN or infinite numbers. The file is damaged; "
                              "get it again.")
    return tensor
