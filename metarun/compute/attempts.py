"""The ranks of one attempt meet in a key-value store that may still hold the entries of an earlier attempt.

torchrun keeps its store when it starts all ranks again (--max-restarts, or a machine that joins or leaves), and counts
restarts for each machine alone. So rank 0 draws a name for the attempt and gives it to each rank that asks for it. The
one who asks has drawn a name too: an answer of an earlier attempt is not for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from datetime import timedelta
from typing import Any

from metarun.errors import RankLost

POLL = 0.05  # seconds


def name_attempt(store: Any, rank: int, size: int, limit: timedelta) -> str:
    """The name of this attempt, the same on all ranks. Raise `RankLost` if rank 0 does not answer within `limit`."""
    own = uuid.uuid4().hex
    if rank == 0:  # in a thread, since it may have a reason to leave before the others come
        threading.Thread(target=_answer, args=(store, own, size), daemon=True, name="attempt").start()
        return own
    store.set(f"asks/{rank}", own)
    end = time.monotonic() + limit.total_seconds()
    while not store.check([f"answer/{own}"]):
        if time.monotonic() > end:
            raise RankLost(f"rank 0 did not start within {limit.total_seconds() / 60:g} minutes")
        time.sleep(POLL)
    name: str = store.get(f"answer/{own}").decode()
    store.set(f"met/{name}/{rank}", "")
    return name


def _answer(store: Any, name: str, size: int) -> None:
    """Give the name to all ranks that ask, until each has received it."""
    with contextlib.suppress(RuntimeError):  # the store has gone
        while missing := [rank for rank in range(1, size) if not store.check([f"met/{name}/{rank}"])]:
            for rank in missing:
                if store.check([f"asks/{rank}"]):
                    store.set(f"answer/{store.get(f'asks/{rank}').decode()}", name)
            time.sleep(POLL)
