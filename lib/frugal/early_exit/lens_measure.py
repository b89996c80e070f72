"""What lenses and bridges say, layer by layer, against what the whole model says."""
from collections.abc import Sequence

import torch

from frugal.core.depth import Affine, Stack
from frugal.early_exit.lenses import LogitLens
from frugal.early_exit.ridge import SINKS

SURE = 0.9                              # a prediction is confident from this probability on


def layer_rows(lm, lens, windows: Sequence[list[int]], exits: Sequence[int] | None = None) -> list[dict]:
    """One row per exit and lens, over all judged positions of the windows.

    agreement: share of positions whose first choice is the whole model's; kl: nats from the whole model's distribution;
    sure: share with p > 0.9; sure_right: the share of those that agree (None where there are none).
    """
    layers = range(1, lm.config.num_layers) if exits is None else exits
    found: dict[tuple[str, int], list[torch.Tensor]] = {}
    for window in windows:
        out = lm.run(torch.tensor([window]), hidden=True)
        whole = out.logits[0, SINKS:].log_softmax(-1)
        for e in layers:
            for one in (LogitLens(), lens):
                logits = one.logits(Stack(lm), out.hidden[e][:, SINKS:], e)[0].log_softmax(-1)
                found.setdefault((one.name, e), []).append(_judged(logits, whole))
    rows = []
    for (name, e), parts in found.items():
        same, kl, top = torch.cat(parts, 1)
        sure = top > SURE
        rows.append({"lens": name, "exit": e, "agreement": float(same.mean()), "kl": float(kl.mean()),
                     "sure": float(sure.float().mean()), "sure_right": float(same[sure].mean()) if sure.any() else None,
                     "tokens": len(same)})
    return rows


def _judged(logits: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """(3, tokens): agrees, KL divergence in nats, highest probability."""
    same = (logits.argmax(-1) == whole.argmax(-1)).float()
    kl = (whole.exp() * (whole - logits)).sum(-1)
    return torch.stack([same, kl, logits.exp().amax(-1)])


def bridge_rows(lm, bridges: dict[int, Affine], windows: Sequence[list[int]], warm_up: int = 1) -> list[dict]:
    """Agreement with the whole model when every position jumps from `warm_up` layers to an entry layer: plain and bridged."""
    whole = [lm(torch.tensor([window]))[0, SINKS:].argmax(-1) for window in windows]
    rows = []
    for entry, bridge in bridges.items():
        for bridged in (False, True):
            same = []
            for window, wanted in zip(windows, whole):
                stack = Stack(lm)
                x = stack.run(stack.embed(torch.tensor([window])), range(warm_up))
                x = stack.run(stack.map(x, bridge) if bridged else x, range(entry, lm.config.num_layers))
                same.append(stack.logits(x)[0, SINKS:].argmax(-1) == wanted)
            agrees = torch.cat(same).float()
            rows.append({"entry": entry, "layers": warm_up + lm.config.num_layers - entry, "bridged": bridged,
                         "agreement": float(agrees.mean()), "tokens": len(agrees)})
    return rows
