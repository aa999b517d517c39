"""Who is lost, by the signs of life that ranks give; tests/faults/test_ranks.py has real ones."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from metarun.compute.watch import Watch
from metarun.errors import RankLost


def make_watch(size: int = 3) -> Watch:
    """Rank 0's, at a time when it has just heard of all."""
    watch = Watch(HashStore(), 0, size, lambda: None)
    watch.patience, watch.answered, watch.judged = 10.0, 100.0, 100.0
    watch.seen = dict.fromkeys(range(size), (b"", 100.0))
    return watch


def judge_until(watch: Watch, end: float) -> list[tuple[float, str]]:
    """The verdicts of every second, from the first one on that names somebody."""
    return [(now, lost) for now in range(101, int(end) + 1) if (lost := watch.judge(float(now)))]


def test_a_rank_is_lost_that_gives_no_sign_while_this_one_waits() -> None:
    watch = make_watch()
    watch.since = 100.0
    for now in range(101, 111):
        assert watch.judge(now) == ""
    watch.answered, watch.seen[1] = 111.0, (b"7", 105.0)
    assert watch.judge(111.0) == "rank 2 gave no sign of life for 10 s"


def test_nobody_is_lost_as_long_as_this_rank_computes() -> None:
    assert judge_until(make_watch(), 200) == []


def test_a_rank_may_be_late_as_long_as_it_lives() -> None:
    watch = make_watch()
    watch.since = 100.0
    for now in range(101, 200):
        watch.answered = float(now)
        watch.seen = {rank: (b"", float(now)) for rank in range(3)}
        assert watch.judge(now) == ""


def test_a_store_that_does_not_answer_is_named_first() -> None:
    watch = make_watch()
    watch.since = 100.0
    now, lost = judge_until(watch, 120)[0]
    assert (now, lost) == (111, "rank 0 had no answer from torchrun's store for 10 s")


def test_after_a_stop_of_its_own_a_rank_waits_anew() -> None:
    watch = make_watch()
    watch.since = 100.0
    assert watch.judge(200.0) == ""
    for now in range(201, 211):
        watch.answered = float(now)
        assert watch.judge(now) == ""
    watch.answered = 211.0
    assert watch.judge(211.0) == "ranks 1, 2 gave no sign of life for 10 s"


def test_it_follows_the_signs_of_others_and_ends_a_wait() -> None:
    store, ended = HashStore(), threading.Event()
    first, second = Watch(store, 0, 2, ended.set), Watch(store, 1, 2, lambda: None)
    for watch in (first, second):
        watch.patience = 0.5
        watch.wait_for_all(timedelta(seconds=1))
        watch.start()
    with first.waiting():
        assert not ended.wait(2)
        second.ended.set()
        assert ended.wait(5)
    assert first.lost == "rank 1 gave no sign of life for 0.5 s"


def test_a_rank_that_does_not_start_is_named() -> None:
    began = time.monotonic()
    with pytest.raises(RankLost, match=r"ranks 1, 2 did not start within 0.005 minutes"):
        make_watch().wait_for_all(timedelta(seconds=0.3))
    assert time.monotonic() - began < 5
