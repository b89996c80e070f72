"""A slow store beside the fast memory, and a meter of what really crosses between them.

The store holds two-dimensional tables in a file (numpy.memmap) or in an arena of its own in main memory. It stands
for host memory or a disk: whoever offloads writes rows once and reads back the few it needs. Every byte is counted
where it is copied, so a count can only be wrong if the copy is.
"""
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Event:
    """One span of work in a lane of the timeline. Seconds since the meter was made; rows moved and rows spared."""
    lane: str
    step: int
    layer: int
    start_s: float
    end_s: float
    rows: int
    hits: int


@dataclass
class TransferMeter:
    """Counts of what moved. Safe to share between threads.

    bytes_written, bytes_read: really copied into and out of the store; rows_read: rows copied out;
    hits: rows that were wanted but already on the fast side; copies: calls that copied something.
    """
    bytes_written: int = 0
    bytes_read: int = 0
    rows_read: int = 0
    hits: int = 0
    copies: int = 0
    events: list[Event] = field(default_factory=list)
    keep_events: bool = True
    _start_s: float = field(default_factory=time.perf_counter, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def now_s(self) -> float:
        """Seconds since the meter was made."""
        return time.perf_counter() - self._start_s

    def wrote(self, num_bytes: int) -> None:
        with self._lock:
            self.bytes_written += num_bytes

    def read(self, rows: int, num_bytes: int) -> None:
        with self._lock:
            self.rows_read += rows
            self.bytes_read += num_bytes
            self.copies += rows > 0

    def hit(self, rows: int) -> None:
        with self._lock:
            self.hits += rows

    def add_event(self, lane: str, step: int, layer: int, start_s: float, rows: int = 0, hits: int = 0) -> None:
        """A span that began at `start_s` and ends now."""
        if self.keep_events:
            event = Event(lane, step, layer, start_s, self.now_s(), rows, hits)
            with self._lock:
                self.events.append(event)

    @property
    def hit_rate(self) -> float:
        """Share of the wanted rows that did not have to move; 0 when nothing was wanted."""
        wanted = self.hits + self.rows_read
        return self.hits / wanted if wanted else 0.0


class SlowStore:
    """Tables of rows in slow memory: `write` once, `read` chosen rows, or `prefetch` them on a thread.

    place: "arena" (an array apart from torch's memory), "file" (numpy.memmap in a temporary folder of its own),
    or a folder for the files. Files are removed by `close`, which leaving a `with` block or the last reference does.
    """

    def __init__(self, place: str | Path = "arena", meter: TransferMeter | None = None):
        self.meter = TransferMeter() if meter is None else meter
        self._tables: dict[object, np.ndarray] = {}
        self._dtypes: dict[object, torch.dtype] = {}
        self._folder = None
        if place != "arena":
            parent = None if place == "file" else Path(place)
            if parent is not None and not parent.is_dir():
                raise ValueError(f'place {str(place)!r}: allowed are "arena", "file" or an existing folder')
            self._folder = tempfile.TemporaryDirectory(prefix="frugal-slow-", dir=parent)
        self._worker: ThreadPoolExecutor | None = None

    def write(self, key: object, rows: Float[Tensor, "rows width"]) -> None:
        """Copy a table into the store, in place of an older one of that key. Raises OSError when the disk is full."""
        is_bf16 = rows.dtype == torch.bfloat16                             # numpy has no such type: move the bits
        source = (rows.detach().view(torch.int16) if is_bf16 else rows.detach()).cpu().numpy()
        if self._folder is None or not rows.numel():
            table = np.empty(source.shape, source.dtype)
        else:
            path = Path(self._folder.name) / f"{len(self._tables)}.rows"
            table = np.memmap(path, dtype=source.dtype, mode="w+", shape=source.shape)
        np.copyto(table, source)
        self._tables[key] = table
        self._dtypes[key] = rows.dtype
        self.meter.wrote(table.nbytes)

    def read(self, key: object, rows: Int[Tensor, "wanted"], device: str | torch.device = "cpu") -> Float[Tensor, "wanted width"]:
        """Copies of the rows named by number, counted. Raises KeyError for an unknown table, IndexError for a row."""
        table = self._tables[key]
        out = np.empty((rows.shape[0], table.shape[1]), table.dtype)
        # np.take with out= and mode="raise" copies twice, so the rows are checked here
        if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= table.shape[0]):
            raise IndexError(f"row {int(rows.max())} of a table of {table.shape[0]} rows")
        np.take(table, rows.cpu().numpy(), axis=0, out=out, mode="clip")
        self.meter.read(rows.shape[0], out.nbytes)
        return torch.from_numpy(out).view(self._dtypes[key]).to(device)

    def prefetch(self, key: object, rows: Int[Tensor, "wanted"], device: str | torch.device = "cpu") -> Future:
        """The same read on a thread of the store's own; `.result()` waits for it."""
        return self.submit(self.read, key, rows, device)

    def submit(self, work, *arguments) -> Future:
        """Any work on the store's thread, in the order submitted."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="slow-store")
        return self._worker.submit(work, *arguments)

    @property
    def num_bytes(self) -> int:
        """Bytes held on the slow side."""
        return sum(table.nbytes for table in self._tables.values())

    def close(self) -> None:
        """Stop the thread and remove the files. May be called twice."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)
            self._worker = None
        self._tables.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> "SlowStore":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()
