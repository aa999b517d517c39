"""The name of an attempt, in a store that holds what earlier attempts left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from metarun.compute.attempts import name_attempt
from metarun.errors import RankLost

LIMIT = timedelta(seconds=60)


def test_each_attempt_has_a_name_of_its_own_that_all_ranks_know() -> None:
    """In any order: the later ranks first, which then find the entries of the attempt before."""
    store, names = dist.HashStore(), []
    with ThreadPoolExecutor(8) as pool:
        for size in (3, 3, 2, 4, 1):
            asking = [pool.submit(name_attempt, store, rank, size, LIMIT) for rank in reversed(range(size))]
            (name,) = {future.result(90) for future in asking}
            names.append(name)
    assert len(set(names)) == 5


def test_a_rank_whose_first_one_does_not_come_gives_up() -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(name_attempt, store, rank, 2, LIMIT) for rank in (0, 1)]
        assert len({future.result(90) for future in asking}) == 1
    with pytest.raises(RankLost, match="rank 0 did not start within"):  # and does not take the earlier answer
        name_attempt(store, 1, 2, timedelta(seconds=0.3))
