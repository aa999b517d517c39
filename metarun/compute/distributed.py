"""Several processes (ranks) that train one run: each computes a share of the tasks, sums make them agree.

The processes are torchrun's. All hold the same parameters and take the same steps; the only thing that they exchange is
sums over ranks. What each has for its own tasks is put among zeros before it is summed, so that a sum gathers as well.
With one rank every operation is the identity and torch.distributed is not even started.

A rank that fails says why in a place that all can read (torchrun's key-value store), and leaves. Those that wait for
it in a sum are then disconnected: each says that it lost the others, and looks up who did not, or who gave a reason.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metarun.errors import RankLost, UserError, one_line
from metarun.storage import ranks

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=10)
"""After which a sum that not all ranks have come to is an error. One that ended is noticed at once, without it."""

PREPARATION = timedelta(hours=24)
"""How long the others wait while rank 0 prepares: it may have a data set to fetch and to decode."""

GRACE = 2.0
"""Seconds that a rank which leaves waits for the others' reasons."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the job."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` tasks are this rank's: neighbours, one more on some ranks than on others; maybe none."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def nonempty_share(self, count: int) -> range:
        """What this rank computes: its share. One without tasks computes the first, so that it knows the shapes of what
        it has nothing to add to."""
        return self.share(count) or range(1)

    def pad(self, rows: Tensor, count: int) -> Tensor:
        """The rows [t, ...] of this rank's share among zeros [count, ...]."""
        own = self.share(count)
        whole = rows.new_zeros(count, *rows.shape[1:])
        whole[own.start : own.stop] = rows[: len(own)]
        return whole

    def gather(self, rows: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Tensors [t, ...] of each rank's share -> [count, ...] of all tasks, the same on every rank."""
        if self.size == 1:
            return rows
        return self.sum({name: self.pad(x, count) for name, x in rows.items()})

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums over ranks, bit for bit the same on all of them; one exchange for each dtype."""
        if self.size == 1:
            return tensors
        summed: dict[str, Tensor] = {}
        for dtype in dict.fromkeys(x.dtype for x in tensors.values()):
            some = {name: x for name, x in tensors.items() if x.dtype == dtype}
            flat = torch.cat([x.reshape(-1) for x in some.values()])
            flat = _all_reduce(flat.byte()).bool() if dtype == torch.bool else _all_reduce(flat)
            parts = flat.split([x.numel() for x in some.values()])
            summed |= {name: part.view(x.shape) for (name, x), part in zip(some.items(), parts, strict=True)}
        return {name: summed[name] for name in tensors}

    def on_first(self, function: Callable[[], Value]) -> Value:
        """What rank 0's call returns, on every rank; where it meets a user's mistake, so do all."""
        if self.size == 1:
            return function()
        found: list[Any] = [None]
        if self.is_first:
            found = [_announced(function)]
        else:
            _wait_for_first()
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return found[0]

    def in_turn(self, function: Callable[[], Value]) -> Value:
        """Each rank's own call, rank 0's first: it may leave files that the others then find."""
        if self.size == 1:
            return function()
        if self.is_first:
            return _announced(function)
        _wait_for_first()
        return function()


SINGLE_PROCESS = ProcessGroup()

_ANNOUNCEMENTS = itertools.count()
"""All ranks come to the same ones in the same order."""

_REASONS: list[str] = []  # why this rank leaves, once it does
_CONNECTIONS: list[int] = []  # the file numbers of those with other ranks


@functools.cache
def connect_processes() -> ProcessGroup:
    """The processes of this job, connected."""
    if ranks.size() == 1:
        return SINGLE_PROCESS
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    store, before = dist.PrefixStore("sums", _store()), _open_files()
    dist.init_process_group(backend, store=store, rank=ranks.rank(), world_size=ranks.size(), timeout=TIMEOUT)
    _CONNECTIONS.extend(number for number in _open_files() - before if not _leads_to_the_store(number))
    atexit.register(_close)
    return ProcessGroup(ranks.rank(), ranks.size())


def _close() -> None:
    """Before the interpreter goes: its threads are not to meet what is left of it."""
    if dist.is_initialized() and not _REASONS:
        dist.destroy_process_group()


@functools.cache
def _store() -> Any:
    """Strings by name that all ranks see."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    return dist.PrefixStore("metarun", store)


def _all_reduce(flat: Tensor) -> Tensor:
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        raise RankLost(_who_left(one_line(error))) from error
    return flat


def _announced(function: Callable[[], Value]) -> Value:
    """Rank 0's call; the others are told that it is done, or what mistake it met."""
    key = f"announced/{next(_ANNOUNCEMENTS)}"
    try:
        value = function()
    except UserError as error:
        _store().set(key, str(error))
        raise
    _store().set(key, "")
    return value


def _wait_for_first() -> None:
    key = f"announced/{next(_ANNOUNCEMENTS)}"
    _store().wait([key], PREPARATION)
    mistake = _store().get(key).decode()
    if mistake:
        raise UserError(mistake)


def farewell(reason: str) -> dict[int, str]:
    """Say why this rank leaves, "" because it lost the others; returns by rank what has been said, its own too."""
    keys = {rank: f"left/{rank}" for rank in range(ranks.size())}
    end = time.monotonic() + (0 if _REASONS else GRACE)
    try:
        if not _REASONS:
            _REASONS.append(reason)
            _endure()
            _store().set(keys[ranks.rank()], reason)
            _disconnect()
        while not _store().check(list(keys.values())) and time.monotonic() < end:
            time.sleep(0.02)
        return {rank: _store().get(key).decode() for rank, key in keys.items() if _store().check([key])}
    except RuntimeError:  # the store has gone with torchrun
        return {ranks.rank(): _REASONS[0]}


def _endure() -> None:
    """torchrun terminates the others as soon as one has ended: let this one still say why, and close its files."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _disconnect() -> None:
    """So that whoever waits for this rank in a sum stops waiting. destroy_process_group leaves the connections open as
    long as anything in torch knows the group, hence the sockets themselves."""
    for number in _CONNECTIONS:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
            connection.shutdown(socket.SHUT_RDWR)


def _open_files() -> set[int]:
    """The numbers of what this process has open; none where the system has no list of them."""
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir("/dev/fd")}
    return set()


def _leads_to_the_store(number: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
        return connection.getpeername()[1] == int(os.environ["MASTER_PORT"])
    return True  # no connection, or none yet


def _who_left(error: str) -> str:
    """A sentence on why the ranks lost one another."""
    heard = farewell("")
    given = [f"rank {rank}: {reason}" for rank, reason in heard.items() if reason]
    silent = [str(rank) for rank in range(ranks.size()) if rank not in heard]
    if given:
        return given[0]
    if len(silent) == 1:
        return f"rank {silent[0]} ended"
    return f"ranks {', '.join(silent)} ended or do not answer" if silent else f"the ranks lost each other ({error})"


def leave_together(error: BaseException, message: str | None) -> NoReturn:
    """End this rank, and with it the job, on an error; `message` if it is a user's mistake. One rank says it for all:
    the first of those that got as far."""
    lost = isinstance(error, RankLost)
    text = message or (str(error) if lost else f"{type(error).__name__}: {one_line(error)}")
    heard = farewell("" if lost else text)
    if ranks.rank() == min(heard):
        whose = "" if lost or set(heard.values()) == {text} else f"rank {ranks.rank()}: "
        print(f"metarun: {whose}{text}", file=sys.stderr, flush=True)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1 if message is None else 2)  # not by way of threads that may still wait for another rank
