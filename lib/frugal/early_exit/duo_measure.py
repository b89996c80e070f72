"""What the Duo-LLM comparison measures, one tidy row per run: losses by budget, where the oracle wants its big layers,
how difficult each token is, and milliseconds.

Source: the experiments of arXiv 2410.10846 (Duo-LLM), scaled down. Losses are nats a token on the held-out slice of the
code corpus; intervals are bootstrapped over its windows, as differences from all big.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.bootstrap import interval
from frugal.core.measure import compare, num_threads
from frugal.data.code_text import code_tokenizer, heldout_windows
from frugal.early_exit.duo_llm import decode_cost, fixed_pattern, forward_flops, random_patterns
from frugal.early_exit.duo_oracle import (
    Picks,
    best_pattern,
    difficulty,
    next_losses,
    num_big,
    patterns,
    perturbed,
    perturbed_losses,
    sequential_oracle,
    uniform_losses,
)
from frugal.early_exit.duo_routers import LearnedRouter
from frugal.models.duo_lm import BIG, SKIP, SMALL, DuoLM, Route, follow

__all__ = ["METHODS", "curve_rows", "held_out", "oracles", "picks_rows", "position_rows", "route_losses",
           "skip_rows", "speed_rows", "strip_rows"]  # fmt: skip

METHODS = (
    "oracle, exact",
    "oracle, uniform",
    "all big, perturbed",
    "all big, perturbed (uniform)",
    "router",
    "random",
    "best random",
    "best fixed pattern",
    "first layers",
    "last layers",
)
RATES = (0.05, 0.1, 0.2, 0.4)  # dropout rates tried for the control; the one with the lowest minimum counts


def held_out(count: int | None) -> Int[Tensor, "windows length"]:
    """`count` windows of 257 tokens that nothing was trained on (None: all)."""
    return heldout_windows(257, count)


def route_losses(duo: DuoLM, tokens: Int[Tensor, "b t_plus_1"], route: Route) -> tuple[Float[Tensor, "b t"], float]:
    """(loss of each token in nats, big networks a token) of whole texts really run under a route."""
    out = duo.run(tokens[:, :-1], route=route)
    return next_losses(out.logits, tokens[:, 1:]), float(num_big(out.choices).float().mean())


def _row(method: str, budget: int, big_layers: float, losses: Float[Tensor, "b t"], base: Float[Tensor, "b t"], **more):
    """low and high bound the difference from `base` (all big) on the same windows: texts differ more than methods."""
    gains = (base - losses).mean(-1).numpy()
    found = interval({"gain": gains, "one": np.ones(len(gains))}, lambda s: s["gain"] / s["one"], draws=1000)
    whole = float(base.mean())
    return {"method": method, "budget_layers": budget, "big_layers": big_layers, "loss": float(losses.mean()),
            "low": whole - found.high, "high": whole - found.low, **more}  # fmt: skip


def curve_rows(
    duo: DuoLM,
    tokens: Int[Tensor, "b t_plus_1"],
    routers: dict[int, LearnedRouter],
    exact: Picks,
    control: Picks,
    table: Float[Tensor, "patterns b t"],
    masks: Float[Tensor, "masks b t"],
    draws: int = 100,
) -> Iterator[dict]:
    """Loss against big layers a token for every method. exact, control, table, masks: see `oracles`."""
    layers, big, base = duo.config.num_layers, num_big(patterns(duo.config.num_layers)), table[-1]
    for k in range(layers + 1):
        count = math.comb(layers, k)
        yield _row("oracle, exact", k, k, exact.losses[k], base, candidates=count)
        yield _row("oracle, uniform", k, k, best_pattern(table, big, k)[1], base, candidates=count)
        yield _row("all big, perturbed", k, layers, control.losses[k], base, candidates=count)
        least = masks[:count].min(0).values
        yield _row("all big, perturbed (uniform)", k, layers, least, base, candidates=count)
        fixed = table[big == k]
        yield _row("best fixed pattern", k, k, fixed[fixed.mean((1, 2)).argmin()], base, candidates=count)
        for method, kind in (("first layers", "first"), ("last layers", "last")):
            row = int("".join(map(str, fixed_pattern(kind, k, layers))), 2)  # the pattern read as a binary number
            yield _row(method, k, k, table[row], base, candidates=1)
        yield from _random_rows(duo, tokens, k, base, draws if 0 < k < layers else 1)
    for k, router in routers.items():
        losses, spent = route_losses(duo, tokens, router)
        yield _row("router", k, spent, losses, base, candidates=1)


def _random_rows(duo: DuoLM, tokens: Tensor, k: int, base: Tensor, draws: int) -> Iterator[dict]:
    """The mean of `draws` random routings (each token and layer apart), its extremes, and the best one."""
    generator, found = torch.Generator().manual_seed(k), []
    for _ in range(draws):
        drawn = random_patterns(len(tokens), tokens.shape[1] - 1, duo.config.num_layers, k, generator)
        found.append(route_losses(duo, tokens, follow(drawn))[0])
    means = torch.stack([one.mean() for one in found])
    ends = {"least": float(means.min()), "most": float(means.max())}
    yield _row("random", k, k, torch.stack(found).mean(0), base, candidates=1, **ends)
    yield _row("best random", k, k, found[int(means.argmin())], base, candidates=draws)


def oracles(duo: DuoLM, tokens: Int[Tensor, "b t_plus_1"], seed: int = 0) -> tuple[Picks, Picks, Tensor, Tensor, float]:
    """(exact oracle, exact control, table of uniform losses, losses of perturbed runs, dropout rate of the controls).

    Rules of the exact oracle: budgets 0..layers, then any number of big layers. Rules of the control: as many
    candidates as budget 0..layers has patterns. What has one pattern needs no oracle: budgets 0
    and layers come from the table.
    """
    layers, table = duo.config.num_layers, uniform_losses(duo, tokens)
    counts = [math.comb(layers, k) for k in range(layers + 1)]
    tried = {
        rate: perturbed_losses(duo, tokens, max(counts), rate, torch.Generator().manual_seed(seed)) for rate in RATES
    }
    rate = min(tried, key=lambda one: float(tried[one].min(0).values.mean()))
    inner = sequential_oracle(duo, tokens, [*range(1, layers), None])
    ends = [Picks(table[row][None], torch.full_like(tokens[None, :, 1:], row)) for row in (0, len(table) - 1)]
    losses, picks = (
        [getattr(ends[0], part)[0], *getattr(inner, part)[:-1], getattr(ends[1], part)[0], getattr(inner, part)[-1]]
        for part in ("losses", "picks")
    )
    control = perturbed(duo, tokens, sorted(set(counts)), rate, torch.Generator().manual_seed(seed))
    rules = [sorted(set(counts)).index(count) for count in counts]
    return (
        Picks(torch.stack(losses), torch.stack(picks)),
        Picks(control.losses[rules], control.picks[rules]),
        table,
        tried[rate],
        rate,
    )


def picks_rows(
    duo: DuoLM, exact: Picks, routers: dict[int, LearnedRouter], tokens: Int[Tensor, "b t_plus_1"]
) -> Iterator[dict]:
    """Share of tokens (0..1) whose network is big, by layer and budget: exact oracle and router."""
    layers = duo.config.num_layers
    chosen = patterns(layers)[exact.picks] == BIG  # (rules, B, T, layers)
    for k in range(1, layers):
        taken = {"oracle": chosen[k].float().mean((0, 1))}
        if k in routers:
            taken["router"] = (duo.run(tokens[:, :-1], route=routers[k]).choices == BIG).float().mean((0, 1))
        for by, share in taken.items():
            yield from ({"by": by, "budget_layers": k, "layer": i, "share": float(share[i])} for i in range(layers))


def position_rows(duo: DuoLM, exact: Picks, edges: Sequence[int] = (0, 16, 64, 128, 192, 256)) -> Iterator[dict]:
    """Big networks the unbounded exact oracle takes, by place in the window."""
    spent = num_big(patterns(duo.config.num_layers)[exact.picks[-1]]).float()  # (B, T)
    for start, stop in zip(edges, edges[1:]):
        part = spent[:, start:stop]
        if part.numel():
            found = interval(
                {"big": part.mean(-1).numpy(), "one": np.ones(len(part))}, lambda s: s["big"] / s["one"], draws=1000
            )
            yield {
                "start": start,
                "stop": min(stop, spent.shape[1]),
                "big_layers": found.value,
                "low": found.low,
                "high": found.high,
            }


def strip_rows(
    duo: DuoLM, tokens: Int[Tensor, "1 t_plus_1"], exact: Picks, table: Float[Tensor, "patterns 1 t"]
) -> Iterator[dict]:
    """One text, token by token: what each pattern class loses, its difficulty, and the patterns of the exact oracle."""
    layers, names = duo.config.num_layers, patterns(duo.config.num_layers)
    hard = difficulty(table, num_big(names))
    show = code_tokenizer().token_str
    for t in range(tokens.shape[1] - 1):
        word = "".join("B" if one == BIG else "s" for one in names[int(exact.picks[-1, 0, t])])
        yield {
            "place": t,
            "token": show(int(tokens[0, t + 1])),
            "all_small": float(table[0, 0, t]),
            "all_big": float(table[-1, 0, t]),
            "best": float(table[:, 0, t].min()),
            "difficulty": float(hard[0, t]),
            "exact": float(exact.losses[-1, 0, t]),
            "pattern": word,
            "big_layers": word.count("B"),
        } | {f"exact_{k}": float(exact.losses[k, 0, t]) for k in range(layers + 1)}


def skip_rows(duo: DuoLM, tokens: Int[Tensor, "b t_plus_1"]) -> Iterator[dict]:
    """The uniform oracle with and without a third choice, skip, which no training drew: all 3^layers patterns."""
    for name, choices in (("big or small", (SMALL, BIG)), ("big, small or skip", (SKIP, SMALL, BIG))):
        table, known = uniform_losses(duo, tokens, choices), patterns(duo.config.num_layers, choices)
        for k in range(duo.config.num_layers + 1):
            rows, losses = best_pattern(table, num_big(known), k)
            yield _row(
                name,
                k,
                k,
                losses,
                table[-1],
                candidates=int((num_big(known) == k).sum()),
                skipped=float((known[rows] == SKIP).sum(-1).float().mean()),
            )


def speed_rows(duo: DuoLM, repeats: int = 15, decode_tok: int = 32, context: int = 64) -> pd.DataFrame:
    """Measured milliseconds of processor time on one thread against the budget, a random pattern for each token:
    reading 256 tokens at once, and decoding one by one.

    Columns: phase, budget_layers, cpu_ms (median per pass, or per decoded token), speedup over all big (median of the
    ratios of neighbouring runs), flops and bytes (by the formula).
    """
    layers, tables = duo.config.num_layers, []
    prompt = torch.randint(1, duo.config.vocab_size, (1, 256), generator=torch.Generator().manual_seed(0))
    base = duo.new_cache(1)
    duo.run(prompt[:, :context], base)

    def prefill(drawn: Tensor) -> Callable[[], object]:
        return lambda: duo.run(prompt, route=follow(drawn), last_only=True)

    def decode(drawn: Tensor) -> Callable[[], object]:
        def steps() -> None:
            cache = base.copy()
            for t in range(decode_tok):
                duo.run(prompt[:, context + t : context + t + 1], cache, route=follow(drawn[:, t : t + 1]))

        return steps

    with num_threads(1):
        for phase, make, per in (("prefill", prefill, 1), ("decode", decode, decode_tok)):
            drawn = {
                k: random_patterns(1, 256, layers, k, torch.Generator().manual_seed(k))
                for k in reversed(range(layers + 1))
            }
            found = compare({str(k): make(one) for k, one in drawn.items()}, repeats)
            for row, (k, one) in zip(found.itertuples(), drawn.items(), strict=True):
                cost = decode_cost(duo.config, k, context + decode_tok // 2)
                tables.append(
                    {
                        "phase": phase,
                        "budget_layers": k,
                        "cpu_ms": 1e3 * row.cpu_s / per,
                        "speedup": row.cpu_ratio,
                        "bytes": cost.bytes if phase == "decode" else math.nan,
                        "flops": cost.flops if phase == "decode" else forward_flops(duo.config, one, last_only=True),
                    }
                )
    return pd.DataFrame(tables)
