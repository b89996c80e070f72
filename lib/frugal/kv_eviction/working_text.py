"""The text a thread runtime has written and the part of it that is still in memory: feeding, freeing, feeding again.

Source: arXiv 2507.16784 (TIMRUN); `frugal.kv_eviction.timrun` has the rule of what is freed, and the departures.
"""
import bisect

import torch

from frugal.core.paged import PagedWorkingMemory

Span = tuple[int, int]


class WorkingText:
    """Base of the runtimes: a paged memory whose spans, named by their places in the whole text, can be freed.

    lm: the model; gap: what happens to the tokens behind a freed span: "reencode" (the paper), "renumber" (keys turned to
    contiguous positions, content as it was) or "holes" (nothing); limit: positions 0..limit-1 may be used (default: the model's);
    window, sinks: hold only the first `sinks` and the newest tokens, `window` in all, renumbered (StreamingLLM); nothing else is freed.
    """

    def __init__(self, lm, gap: str = "reencode", limit: int | None = None, window: int | None = None, sinks: int = 0):
        if gap not in ("reencode", "renumber", "holes"):
            raise ValueError(f"gap is {gap!r}; gap is 'reencode', 'renumber' or 'holes'")
        most = lm.config.max_positions
        if limit is not None and not 1 <= limit <= most:
            raise ValueError(f"limit is {limit}; it must be 1..{most}, the positions of the model")
        if window is not None and not 0 <= sinks < window:
            raise ValueError(f"sinks is {sinks} and window {window}; need 0 <= sinks < window")
        self.lm, self.gap, self.limit, self.window, self.sinks = lm, gap, limit or most, window, sinks
        self.clear()

    def clear(self) -> None:
        """Start an empty text."""
        self.memory = PagedWorkingMemory(self.lm.config, self.lm.rope, device=self.lm.device, dtype=self.lm.dtype)
        self.text: list[int] = []                                    # every token that went through
        self.live: list[int] = []                                    # places in `text` of the tokens held, in order
        self.reencoded = self.peak = 0
        self.occupancy: list[int] = []                               # tokens held after each forward pass
        self.step_of_token: list[int] = []
        self.frees: list[tuple[int, list[Span]]] = []                # (step, spans)
        self.tables: list[list[int]] = []                            # the page table after each prune

    def _behind(self, spans: list[Span]) -> tuple[int, list[int]]:
        """First slot that leaves, and the retained places behind it."""
        first = bisect.bisect_left(self.live, spans[0][0])
        keep = [p for p in self.live[first:] if not any(a <= p < b for a, b in spans)]
        return first, keep

    def highest_position(self, num_new: int, spans: list[Span]) -> int:
        """The position that the last of `num_new` tokens would get, after freeing `spans`."""
        if self.window is not None:
            return min(len(self.live), self.window) + num_new - 1
        if spans and self.gap != "holes":
            first, keep = self._behind(spans)
            return first + len(keep) + num_new - 1
        return int(self.memory.next_positions(1)) + num_new - 1

    def feed(self, new: list[int], spans: list[Span]) -> torch.Tensor:
        """Free the spans, then one forward pass over the new tokens (and over the tail, if it is encoded again)."""
        tail: list[int] = []
        if spans:
            tail = self._prune(spans)
        places = list(range(len(self.text), len(self.text) + len(new)))
        self.text += new
        ids = [self.text[p] for p in tail] + new
        positions = self._positions(tail + places)
        logits = self.lm(torch.tensor([ids], device=self.lm.device), self.memory, positions=positions, last_only=True)[0, -1]
        self.live += tail + places
        self.reencoded += len(tail)
        self.peak = max(self.peak, len(self.live))
        if self.window is not None and len(self.live) > self.window:
            self._slide()
        self.occupancy.append(len(self.live))
        self.step_of_token += [len(self.occupancy) - 1] * len(new)
        if spans:
            self.frees.append((len(self.occupancy) - 1, spans))
            self.tables.append(list(self.memory.tables[0]))
        return logits

    def _positions(self, places: list[int]) -> torch.Tensor:
        """(1, T) positions of the tokens fed next, which stand at `places` of the whole text: behind the last slot held."""
        return self.memory.next_positions(len(places))

    def _prune(self, spans: list[Span]) -> list[int]:
        """Take the spans out of the memory; returns the places whose tokens must be fed again."""
        first, keep = self._behind(spans)
        if self.gap == "reencode":
            self.memory.truncate(first)
            self.live = self.live[:first]
            return keep
        for start, stop in reversed(spans):
            self.memory.free_span(bisect.bisect_left(self.live, start), bisect.bisect_left(self.live, stop))
        self.live = self.live[:first] + keep
        if self.gap == "renumber":
            self.memory.renumber()
        return []

    def _slide(self) -> None:
        excess = len(self.live) - self.window
        self.memory.free_span(self.sinks, self.sinks + excess)
        del self.live[self.sinks:self.sinks + excess]
        self.memory.renumber()
