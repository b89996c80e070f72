"""The store gives back what was written, and the meter counts what was really copied."""
import gc
import os
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.transfer import SlowStore, TransferMeter


@settings(max_examples=30, deadline=None)
@given(place=st.sampled_from(["arena", "file"]), rows=st.integers(1, 20), width=st.integers(1, 9), data=st.data())
def test_reads_what_was_written_and_counts_it(place, rows, width, data):
    wanted = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), max_size=12)), dtype=torch.int64)
    table = torch.randn(rows, width)
    with SlowStore(place) as store:
        store.write("layer 0", table)
        got = store.read("layer 0", wanted)
        assert torch.equal(got, table[wanted])
        assert store.num_bytes == store.meter.bytes_written == table.numel() * 4
        assert store.meter.bytes_read == wanted.numel() * width * 4 == got.untyped_storage().nbytes()
        assert store.meter.rows_read == wanted.numel()


def test_the_store_is_a_copy_apart_from_the_tensor():
    table = torch.zeros(3, 2)
    with SlowStore() as store:
        store.write(0, table)
        table += 1
        got = store.read(0, torch.tensor([0]))
        assert got.sum() == 0
        got += 1
        assert store.read(0, torch.tensor([0])).sum() == 0


def test_brain_floats_cross_bit_for_bit():
    table = torch.randn(4, 3).bfloat16()
    with SlowStore("file") as store:
        store.write(0, table)
        assert torch.equal(store.read(0, torch.tensor([2, 0])), table[[2, 0]]) and store.num_bytes == 24


def test_prefetch_runs_on_another_thread_and_gives_the_same_rows():
    with SlowStore() as store:
        store.write("a", torch.arange(12.0).reshape(6, 2))
        who = store.submit(threading.get_ident).result()
        future = store.prefetch("a", torch.tensor([5, 1]))
        assert torch.equal(future.result(), torch.tensor([[10.0, 11.0], [2.0, 3.0]]))
        assert who != threading.get_ident() and store.meter.rows_read == 2


def test_files_appear_and_are_removed(tmp_path):
    store = SlowStore(tmp_path)
    store.write("a", torch.randn(64, 4))
    files = [os.path.join(folder, name) for folder, _, names in os.walk(tmp_path) for name in names]
    assert sum(os.path.getsize(f) for f in files) == 64 * 4 * 4
    store.close()
    store.close()
    assert not list(tmp_path.iterdir())


def test_a_forgotten_store_leaves_nothing_behind(tmp_path):
    store = SlowStore(tmp_path)
    store.write("a", torch.randn(4, 4))
    with pytest.warns(ResourceWarning):
        del store
        gc.collect()
    assert not list(tmp_path.iterdir())


def test_bad_places_keys_and_rows_say_so(tmp_path):
    with pytest.raises(ValueError, match="no such folder|existing folder"):
        SlowStore(tmp_path / "missing")
    with SlowStore() as store:
        store.write("a", torch.randn(4, 4))
        with pytest.raises(KeyError):
            store.read("b", torch.tensor([0]))
        for row in (4, -1):
            with pytest.raises(IndexError, match="4 rows"):
                store.read("a", torch.tensor([row]))
        assert store.meter.bytes_read == 0


def test_a_full_disk_is_an_oserror(monkeypatch):
    def full(*_args, **_more):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "memmap", full)
    with SlowStore("file") as store, pytest.raises(OSError, match="No space left"):
        store.write("a", torch.randn(4, 4))


def test_meter_counts_are_exact_under_threads():
    meter = TransferMeter()
    workers = [threading.Thread(target=lambda: [meter.read(2, 16) or meter.hit(1) for _ in range(500)]) for _ in range(4)]
    [w.start() for w in workers]
    [w.join() for w in workers]
    assert (meter.rows_read, meter.bytes_read, meter.hits, meter.copies) == (4000, 32000, 2000, 2000)
    assert meter.hit_rate == pytest.approx(1 / 3) and TransferMeter().hit_rate == 0.0


def test_events_are_spans_of_the_meters_clock():
    meter = TransferMeter()
    start = meter.now_s()
    meter.add_event("fetch V", step=1, layer=2, start_s=start, rows=3, hits=1)
    (event,) = meter.events
    assert event.start_s <= event.end_s <= meter.now_s() and (event.rows, event.hits) == (3, 1)
    TransferMeter(keep_events=False).add_event("x", 0, 0, 0.0)


class CountsWhatWasAsked(SlowStore):
    """Wrong: counts the request, although it hands out a view and copies nothing."""

    def read(self, key, rows, device="cpu"):
        table = torch.from_numpy(self._tables[key])
        self.meter.read(rows.shape[0], rows.shape[0] * table.shape[1] * 4)
        return table[int(rows[0]):int(rows[-1]) + 1]


class CountsNothingOnAThread(SlowStore):
    """Wrong: prefetched rows are never counted."""

    def prefetch(self, key, rows, device="cpu"):
        return self.submit(lambda: torch.from_numpy(self._tables[key][rows.numpy()]))


def counts_real_copies(kind) -> bool:
    with kind() as store:
        store.write(0, torch.zeros(8, 2))
        got = store.read(0, torch.tensor([2, 3]))
        got += 1
        apart = float(store.read(0, torch.tensor([2, 3])).sum()) == 0
        before = store.meter.bytes_read
        late = store.prefetch(0, torch.tensor([1])).result()
        return bool(apart and store.meter.bytes_read - before == late.numel() * 4)


def test_planted_wrong_stores_are_rejected():
    assert counts_real_copies(SlowStore)
    assert not counts_real_copies(CountsWhatWasAsked)
    assert not counts_real_copies(CountsNothingOnAThread)
