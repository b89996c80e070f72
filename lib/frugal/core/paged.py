"""Paged KV memory: tokens live in pages of one pool, and any span of a sequence can be freed.

Source: arXiv 2309.06180 (PagedAttention), sections 4.1-4.2, for pages and page tables; arXiv 2507.16784 (TIMRUN) for page size 1,
with which a span in the middle of a sequence frees exactly its own pages.
Differs: attention gathers the pages of a sequence before the product; a fused kernel would read them in place.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

GROWTH = 64                                            # a full pool grows by this many pages, or by a quarter of its size


class OutOfPages(RuntimeError):
    """The pool is full and may not grow."""


class PageAllocator:
    """Hands out page numbers 0..num_pages-1; a page has one owner at most. Freed pages are reused, the last freed first."""

    def __init__(self, num_pages: int):
        if num_pages < 0:
            raise ValueError(f"num_pages is {num_pages}; it must be 0 or more")
        self.num_pages = 0
        self._free: list[int] = []
        self._used: set[int] = set()
        self.grow(num_pages)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._used)

    def grow(self, count: int) -> None:
        """Add `count` free pages at the end."""
        self._free[:0] = range(self.num_pages + count - 1, self.num_pages - 1, -1)
        self.num_pages += count

    def take(self, count: int) -> list[int]:
        """`count` pages, now used. Raises OutOfPages and takes none when fewer are free."""
        if count > len(self._free):
            raise OutOfPages(f"{count} pages wanted, {self.num_free} of {self.num_pages} free")
        pages = [self._free.pop() for _ in range(count)]
        self._used.update(pages)
        return pages

    def free(self, pages: list[int]) -> None:
        """Give pages back. Raises ValueError and frees none when one is not in use or named twice."""
        if len(set(pages)) != len(pages) or not self._used.issuperset(pages):
            raise ValueError(f"pages {sorted(set(pages) - self._used) or 'named twice'} are not in use")
        self._used.difference_update(pages)
        self._free.extend(reversed(pages))


class PagedWorkingMemory:
    """KV cache over a page pool, with the protocol of `frugal.core.kvcache`; freed spans leave at once.

    Slots of a sequence are in text order. Positions follow the last slot held: after a span in the middle is freed they have a
    hole, unless the tokens behind it are fed again (`truncate`, then a forward pass), which makes them contiguous.

    config, rope: of the LM; batch: sequences; page_size: tokens a page; num_pages: pages at the start;
    max_pages: the pool never grows beyond (None: no bound).
    """

    def __init__(self, config, rope, batch: int = 1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                 page_size: int = 1, num_pages: int = GROWTH, max_pages: int | None = None):
        if page_size < 1 or batch < 1:
            raise ValueError(f"page_size is {page_size} and batch is {batch}; both must be at least 1")
        if max_pages is not None and num_pages > max_pages:
            raise ValueError(f"num_pages is {num_pages}; it must be at most max_pages, {max_pages}")
        self.config, self.rope, self.page_size, self.max_pages = config, rope, page_size, max_pages
        self.pages = PageAllocator(num_pages)
        # One tensor per layer, so that growing or shrinking needs room for one more layer only.
        shape = (2, num_pages * page_size, config.num_kv_heads, config.head_dim)
        self.pool = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.position_pool = torch.zeros(num_pages * page_size, dtype=torch.int64, device=device)
        self.tables: list[list[int]] = [[] for _ in range(batch)]
        self.slots = [torch.empty(0, dtype=torch.int64, device=device) for _ in range(batch)]   # place in the pool, text order
        self.num_seen = torch.zeros(batch, dtype=torch.int64, device=device)
        self._reserved = 0                              # slots given to the forward pass in progress
        self._written: set[int] = set()                 # layers that have written them

    # ---- the cache protocol -------------------------------------------------------------------------------------------------
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """Append k, v (B, T, K, D) and attend causally in slot order: q (B, T, H, D) to (B, T, H, D)."""
        num_new = q.shape[1]
        if self._reserved != num_new or layer in self._written:
            self._reserve(num_new, positions)
        self._written.add(layer)
        out = torch.empty_like(q)
        pool = self.pool[layer]
        for row, slots in enumerate(self.slots):
            pool[0, slots[-num_new:]], pool[1, slots[-num_new:]] = k[row].to(pool.dtype), v[row].to(pool.dtype)
            held = pool[:, slots].transpose(1, 2).to(q.dtype)                               # (2, K, S, D)
            mask = None
            if num_new > 1:
                mask = torch.ones(num_new, len(slots), dtype=torch.bool, device=q.device).tril(len(slots) - num_new)
            out[row] = F.scaled_dot_product_attention(q[row].transpose(0, 1)[None], held[:1], held[1:], attn_mask=mask,
                                                      enable_gqa=True)[0].transpose(0, 1)
        return out

    def advance(self, num_tokens: int) -> None:
        """Count the tokens of a finished forward pass."""
        self.num_seen += num_tokens
        self._reserved = 0
        self._written.clear()

    def next_positions(self, num_tokens: int) -> Tensor:
        """(B, num_tokens): the places after the last slot held; without holes that is num_held .. num_held + T - 1."""
        self._break_off()
        last = [int(self.position_pool[slots[-1]]) if len(slots) else -1 for slots in self.slots]
        start = torch.tensor(last, device=self.num_seen.device) + 1
        return start[:, None] + torch.arange(num_tokens, device=start.device)

    def num_held(self, layer: int = 0) -> Tensor:
        """(B,) tokens in memory."""
        return torch.tensor([len(slots) for slots in self.slots])

    @property
    def num_bytes(self) -> int:
        """Bytes of the real storage: the pool, free pages included, and the positions."""
        return sum(t.untyped_storage().nbytes() for t in [*self.pool, self.position_pool])

    # ---- what pages are for -------------------------------------------------------------------------------------------------
    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys, values and positions."""
        return self.page_size * (sum(p[:, 0].numel() * p.element_size() for p in self.pool) + 8)

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages in use."""
        return self.pages.num_used * self.page_bytes

    def positions(self, sequence: int = 0) -> Tensor:
        """(S,) position of each slot held, in slot order."""
        return self.position_pool[self.slots[sequence]]

    def free_span(self, start: int, stop: int, sequence: int = 0) -> int:
        """Drop slots start..stop-1 of a sequence; returns the pages freed. Later slots keep keys and positions as they are.

        Raises ValueError for a span outside 0..num_held, or one that cuts a page (only the end of a sequence may).
        """
        self._break_off()
        held, size = len(self.slots[sequence]), self.page_size
        if not 0 <= start <= stop <= held:
            raise ValueError(f"span {start}..{stop} is outside 0..{held}, the slots held")
        if start % size and stop < held or stop % size and stop < held:
            raise ValueError(f"span {start}..{stop} cuts a page of {size} tokens; only page size 1 can free any span")
        first, last = math.ceil(start / size), math.ceil(stop / size)
        table = self.tables[sequence]
        dropped = table[first:last]
        self.pages.free(dropped)
        self.tables[sequence] = table[:first] + table[last:]
        self.slots[sequence] = torch.cat([self.slots[sequence][:start], self.slots[sequence][stop:]])
        return len(dropped)

    def truncate(self, length: int, sequence: int = 0) -> int:
        """Keep the first `length` slots of a sequence; returns the pages freed."""
        return self.free_span(length, len(self.slots[sequence]), sequence)

    def renumber(self, sequence: int = 0) -> None:
        """Turn the keys of a sequence to positions 0..num_held-1 without computing them anew; their content stays as it is."""
        slots = self.slots[sequence]
        new = torch.arange(len(slots), device=slots.device)
        first = int((self.position_pool[slots] != new).long().argmax()) if len(slots) else 0     # the rest is in place
        slots, turn = slots[first:], (new - self.position_pool[slots])[first:]
        for pool in self.pool:
            pool[0, slots] = self.rope.rotate(pool[0, slots][None], turn[None])[0]
        self.position_pool[slots] = new[first:]

    def compact(self) -> int:
        """Move the used pages to the front and give the rest of the pool back; returns the bytes released."""
        self._break_off()
        before = self.num_bytes
        old = [page for table in self.tables for page in table]
        new_place = {page: i for i, page in enumerate(old)}
        size = self.page_size
        rows = torch.tensor([page * size + i for page in old for i in range(size)], dtype=torch.int64, device=self.num_seen.device)
        for layer, pool in enumerate(self.pool):
            self.pool[layer] = pool[:, rows].clone()
        self.position_pool = self.position_pool[rows].clone()
        self.tables = [[new_place[page] for page in table] for table in self.tables]
        self.slots = [self._places(table, 0, len(slots)) for table, slots in zip(self.tables, self.slots)]
        self.pages = PageAllocator(len(old))
        self.pages.take(len(old))
        return before - self.num_bytes

    # ---- inside -------------------------------------------------------------------------------------------------------------
    def _places(self, table: list[int], start: int, stop: int) -> Tensor:
        size = self.page_size
        return torch.tensor([table[i // size] * size + i % size for i in range(start, stop)], dtype=torch.int64,
                            device=self.num_seen.device)

    def _break_off(self) -> None:
        """Take back the slots of a forward pass that ended in an error."""
        unfinished, self._reserved = self._reserved, 0
        self._written.clear()
        for row in range(len(self.slots) if unfinished else 0):
            self.truncate(len(self.slots[row]) - unfinished, row)

    def _reserve(self, num_new: int, positions: Tensor) -> None:
        """Pages and slots for the new tokens of every sequence."""
        self._break_off()
        size = self.page_size
        lengths = [len(slots) for slots in self.slots]
        wanted = [math.ceil((n + num_new) / size) - len(table) for n, table in zip(lengths, self.tables)]
        self._grow_to(self.pages.num_used + sum(wanted))
        for row, (length, count) in enumerate(zip(lengths, wanted)):
            self.tables[row] += self.pages.take(count)
            new = self._places(self.tables[row], length, length + num_new)
            self.slots[row] = torch.cat([self.slots[row], new])
            self.position_pool[new] = positions[row if len(positions) > 1 else 0].to(torch.int64)
        self._reserved = num_new

    def _grow_to(self, used: int) -> None:
        have = self.pages.num_pages
        if used <= have:
            return
        target = max(used, have + max(GROWTH, have // 4))
        if self.max_pages is not None:
            if used > self.max_pages:
                raise OutOfPages(f"{used} pages needed, {self.max_pages} allowed ({self.max_pages * self.page_size} tokens); "
                                 "allow more, or free a span first")
            target = min(target, self.max_pages)
        more = (target - have) * self.page_size
        for layer, pool in enumerate(self.pool):
            self.pool[layer] = torch.cat([pool, pool.new_zeros(2, more, *pool.shape[2:])], dim=1)
        self.position_pool = torch.cat([self.position_pool, self.position_pool.new_zeros(more)])
        self.pages.grow(target - have)
