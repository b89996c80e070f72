"""The small trained networks, and one loader and one saver for all of their weights.

A network's weights are `weights/<name>.safetensors` (fp16) beside `weights/<name>.json`, its card:
recipe, seed, data hash, metrics, number of parameters, and the sha256 of the weights file.
No pickle anywhere; a file that does not match its card is refused.
"""

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from frugal.core.files import write_atomically

__all__ = [
    "WEIGHTS_FOLDER",
    "WeightsError",
    "list_weights",
    "load_card",
    "load_weights",
    "save_weights",
]

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


class WeightsError(ValueError):
    """Weights or card are missing, damaged, or do not belong together."""


def list_weights(prefix: str = "", folder: Path | str = WEIGHTS_FOLDER) -> list[str]:
    """Names of the stored networks that start with `prefix`, sorted."""
    return sorted(path.stem for path in Path(folder).glob(f"{prefix}*.safetensors"))


def load_card(name: str, folder: Path | str = WEIGHTS_FOLDER) -> dict:
    """The card of a stored network, without reading its weights. Raises WeightsError."""
    path = _path(name, folder, ".json")
    if not path.is_file():
        raise WeightsError(
            f"no card for {name!r} in {folder}; stored networks: {list_weights(folder=folder) or 'none'}"
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(
            f"the card {path} is not JSON ({error}); restore it, e.g. `git checkout -- {path.name}`"
        ) from error
    if not isinstance(card, dict) or not isinstance(card.get("sha256"), str):
        raise WeightsError(f"the card {path} names no sha256; run the network's recipe again")
    return card


def load_weights(
    name: str, folder: Path | str = WEIGHTS_FOLDER, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict]:
    """(state, card) of a stored network; floating-point tensors come back as `dtype`, on the CPU.

    Raises WeightsError when the file is missing, or its sha256 is not the one on the card
    (truncated, changed, or from another training run).
    """
    card = load_card(name, folder)
    path = _path(name, folder, ".safetensors")
    if not path.is_file():
        raise WeightsError(
            f"the card of {name!r} is there, but {path} is missing; "
            f"restore it or run {card.get('recipe', 'its recipe')}"
        )
    blob = path.read_bytes()
    found = hashlib.sha256(blob).hexdigest()
    if found != card["sha256"]:
        raise WeightsError(
            f"{path} does not match its card: sha256 {found[:12]}..., expected {card['sha256'][:12]}... "
            f"({len(blob):,} bytes); restore the file or run {card.get('recipe', 'its recipe')} again"
        )
    state = load_safetensors(blob)
    return {key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}, card


def save_weights(name: str, state: dict[str, Tensor], card: dict, folder: Path | str = WEIGHTS_FOLDER) -> Path:
    """Write `<name>.safetensors` (floating-point tensors as fp16) and its card; returns the weights path.

    The card gains sha256, num_parameters and num_bytes. Each file is written beside its place and moved
    there, so a killed run leaves no half-written file. Raises WeightsError on a value that fp16 cannot hold.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    halved = {key: _to_half(key, tensor) for key, tensor in state.items()}
    blob = save_safetensors(halved)
    card = dict(card) | {
        "name": name,
        "dtype": "float16",
        "num_parameters": sum(t.numel() for t in halved.values()),
        "num_bytes": len(blob),
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    text = json.dumps(card, indent=1, sort_keys=True, allow_nan=False) + "\n"
    path = _path(name, folder, ".safetensors")
    write_atomically(path, blob)
    write_atomically(_path(name, folder, ".json"), text.encode())
    return path


def _to_half(key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach().cpu().contiguous()
    half = tensor.detach().cpu().to(torch.float16).contiguous()
    if not half.isfinite().all():
        raise WeightsError(
            f"{key!r} holds values outside fp16 (largest {tensor.abs().max().item():.3g}); did the training diverge?"
        )
    return half


def _path(name: str, folder: Path | str, suffix: str) -> Path:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise WeightsError(f"a network's name has lower-case letters, digits and underscores only, not {name!r}")
    return Path(folder) / f"{name}{suffix}"
