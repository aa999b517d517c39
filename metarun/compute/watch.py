"""Whether the other ranks are alive. A sum that waits does not know: a stopped process keeps its connections open.

Each rank counts up in the key-value store that all share, every second, whatever else it does: sums may wait for hours
while rank 0 downloads. A rank is lost once this one has waited for it for `patience` seconds and its count has not
changed for as long. Clocks of several machines are not compared.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import DistNetworkError

from metarun.errors import RankLost

PATIENCE = 15.0
"""Seconds, until the settings are known (device.rank_patience). torchrun needs up to 30 more to end a stopped rank."""

BEAT = 1.0
"""Seconds between two signs of life, less with little patience."""


def name_ranks(some: Sequence[int]) -> str:
    return f"rank {some[0]}" if len(some) == 1 else f"ranks {', '.join(map(str, some))}"


class Watch:
    """Gives this rank's signs of life, follows those of the others, and calls `on_loss` once one of them is lost.

    Two threads use it: if the network is cut, a call to the store does not return, and the other thread has to notice.
    """

    def __init__(self, store: Any, rank: int, size: int, on_loss: Callable[[], None]) -> None:
        self.store, self.rank, self.on_loss = store, rank, on_loss
        self.patience = PATIENCE
        self.lost = ""  # who is lost, as a sentence
        self.store_lost = False
        self.keys = {other: f"alive/{other}" for other in range(size)}
        self.answered = self.judged = time.monotonic()
        self.seen = dict.fromkeys(self.keys, (b"", self.answered))  # each rank's count, and since when it has it
        self.since: float | None = None  # when this rank began to wait for the others
        self.ended = threading.Event()
        store.set(self.keys[rank], "0")

    def wait_for_all(self, limit: timedelta) -> None:
        """Wait until every rank has given its first sign. Raise `RankLost` if that takes longer than `limit`."""
        end = time.monotonic() + limit.total_seconds()
        while missing := [other for other, key in self.keys.items() if not self.store.check([key])]:
            if time.monotonic() > end:
                raise RankLost(f"{name_ranks(missing)} did not start within {limit.total_seconds() / 60:g} minutes")
            time.sleep(0.05)

    def start(self) -> None:
        """Start to watch, once every rank has given its first sign."""
        for name, loop in (("signs of life", self._exchange_signs), ("patience", self._watch)):
            threading.Thread(target=loop, name=name, daemon=True).start()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """In the block, this rank waits for others."""
        self.since = time.monotonic()
        try:
            yield
        finally:
            self.since = None

    def judge(self, now: float) -> str:
        """Return who is lost at a time, as a sentence; "" if nobody is. Call it at every beat."""
        if now - self.judged > self.patience / 2:  # this process was stopped itself, maybe with all others
            self.answered, self.seen = now, dict.fromkeys(self.keys, (b"", now))
        self.judged = now
        limit = now - self.patience
        if self.since is None or self.since > limit:
            return ""
        if self.answered < limit:
            return f"rank {self.rank} had no answer from torchrun's store for {self.patience:g} s"
        silent = [other for other, (_, at) in self.seen.items() if at < limit and other != self.rank]
        return f"{name_ranks(silent)} gave no sign of life for {self.patience:g} s" if silent else ""

    def _beat(self) -> float:
        return min(BEAT, self.patience / 5)

    def _exchange_signs(self) -> None:
        count = 0
        while not self.ended.wait(self._beat()):
            count += 1
            try:
                self.store.set(self.keys[self.rank], str(count))
                counts = self.store.multi_get(list(self.keys.values()))
            except DistNetworkError:  # closed: torchrun has ended, and this process will (jobs/sweep/child.py)
                self.store_lost = True
                return
            except RuntimeError:  # no answer
                continue
            now = self.answered = time.monotonic()
            for other, found in zip(self.keys, counts, strict=True):
                if self.seen[other][0] != found:
                    self.seen[other] = found, now

    def _watch(self) -> None:
        while not self.lost and not self.ended.wait(self._beat()):
            self.lost = self.judge(time.monotonic())
        if self.lost:
            self.store_lost |= time.monotonic() - self.answered > self.patience
            self.on_loss()
