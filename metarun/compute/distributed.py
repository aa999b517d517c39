"""Several processes (ranks) that train one run: each computes a share of the tasks, and sums make them agree.

The processes are torchrun's. All hold the same parameters and take the same steps; all that they exchange is sums over
ranks. Each puts its own rows among zeros before a sum, so that a sum gathers as well. With one process every operation
is the identity and torch.distributed is not started.

A rank that fails stores its reason where all can read it (torchrun's key-value store), and leaves. The ranks that wait
for it in a sum are then disconnected; each looks up which rank left, and why. A rank that hangs or is cut off leaves
nothing: watch.py notices it.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metarun.compute.attempts import name_attempt
from metarun.compute.watch import Watch, name_ranks
from metarun.errors import RankLost, UserError, one_line
from metarun.storage import ranks

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=10)
"""A sum that not all ranks reach within this time is an error, although all are alive."""

PREPARATION = timedelta(hours=24)
"""How long the others wait for rank 0, which may have a data set to download and to decode."""

GRACE = 2.0
"""Seconds that a leaving rank waits for the reasons of the others."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of the job, seen from this one: its rank and their number."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return this rank's part of `count` tasks: consecutive ones, maybe none; sizes differ by at most one."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def nonempty_share(self, count: int) -> range:
        """Return the tasks that this rank computes: its share, or the first task if that is empty, which gives it the
        shapes of the results."""
        return self.share(count) or range(1)

    def pad(self, rows: Tensor, count: int) -> Tensor:
        """Put the rows [t, ...] of this rank's share among zeros [count, ...]."""
        own = self.share(count)
        whole = rows.new_zeros(count, *rows.shape[1:])
        whole[own.start : own.stop] = rows[: len(own)]
        return whole

    def gather(self, rows: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Gather the tensors [t, ...] of each rank's share as [count, ...], the same on every rank."""
        if self.size == 1:
            return rows
        return self.join({name: self.pad(x, count) for name, x in rows.items()})

    def join(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Join tensors of which one rank has an element and the others a zero, bit for bit; in one exchange."""
        if self.size == 1:
            return tensors
        # As bytes: of numbers, -0 + 0 is 0 and NaN + 0 may be another NaN.
        flat = _all_reduce(torch.cat([x.reshape(-1).view(torch.uint8) for x in tensors.values()]))
        parts = flat.split([x.numel() * x.element_size() for x in tensors.values()])
        # A copy of each begins where a number may.
        joined = (part.clone().view(x.dtype).view(x.shape) for x, part in zip(tensors.values(), parts, strict=True))
        return dict(zip(tensors, joined, strict=True))

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sum over ranks numbers of one dtype, bit for bit the same on all of them; in one exchange."""
        if self.size == 1:
            return tensors
        flat = _all_reduce(torch.cat([x.reshape(-1) for x in tensors.values()]))
        parts = flat.split([x.numel() for x in tensors.values()])
        return {name: part.view(x.shape) for (name, x), part in zip(tensors.items(), parts, strict=True)}

    def on_first(self, function: Callable[[], Value]) -> Value:
        """Call the function on rank 0 and return its value on every rank. Its `UserError` is raised on every rank."""
        if self.size == 1:
            return function()
        value: list[Any] = [None]
        if self.is_first:
            value = [_call_and_announce(function)]
        else:
            _wait_for_first()
        with _exchange():
            dist.broadcast_object_list(value, src=0, device=torch.device("cpu"))
        return value[0]

    def in_turn(self, function: Callable[[], Value]) -> Value:
        """Call the function on every rank, on rank 0 first: it may write files that the others then find."""
        if self.size == 1:
            return function()
        if self.is_first:
            return _call_and_announce(function)
        _wait_for_first()
        return function()


SINGLE_PROCESS = ProcessGroup()

_ANNOUNCEMENTS = itertools.count()
"""Numbers the announcements of rank 0. All ranks reach the same ones in the same order."""

LOST = "lost"  # key of who is lost

_REASONS: list[str] = []  # one entry once this rank leaves
_CONNECTIONS: list[int] = []  # file descriptors of the connections with other ranks


@functools.cache
def connect_processes() -> ProcessGroup:
    """Return the processes of this job, connected by torch.distributed at the first call."""
    if ranks.size() == 1:
        return SINGLE_PROCESS
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    store = dist.PrefixStore("sums", _store())
    _watch().wait_for_all(TIMEOUT)
    before = _open_descriptors()
    dist.init_process_group(backend, store=store, rank=ranks.rank(), world_size=ranks.size(), timeout=TIMEOUT)
    _CONNECTIONS.extend(number for number in _open_descriptors() - before if not _is_store_connection(number))
    atexit.register(_close)
    _watch().start()
    return ProcessGroup(ranks.rank(), ranks.size())


def _close() -> None:
    """Stop the threads of torch.distributed before the interpreter shuts down."""
    _watch().ended.set()
    if dist.is_initialized() and not _REASONS:
        dist.destroy_process_group()


@functools.cache
def _store() -> Any:
    """The key-value store that all ranks of this attempt share."""
    from torch.distributed.rendezvous import rendezvous

    found, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore("metarun", found)
    return dist.PrefixStore(name_attempt(store, ranks.rank(), ranks.size(), TIMEOUT), store)


@functools.cache
def _watch() -> Watch:
    return Watch(_store(), ranks.rank(), ranks.size(), _end_waiting)


def set_patience(seconds: float) -> None:
    """Set how long a rank may give no sign of life."""
    if ranks.size() > 1:
        _watch().patience = seconds


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """In the block, this rank waits for the others. Raise `RankLost` if one of them does not come."""
    began = time.monotonic()
    try:
        if _watch().lost:
            raise RuntimeError(_watch().lost)
        with _watch().waiting():
            yield
    except RuntimeError as error:
        # The first one that gives up disconnects the others, which may have come a little later.
        overdue = time.monotonic() - began > TIMEOUT.total_seconds() / 2
        raise RankLost(_explain_loss(one_line(error), overdue)) from error


def _all_reduce(flat: Tensor) -> Tensor:
    with _exchange():
        dist.all_reduce(flat)
    return flat


def _call_and_announce(function: Callable[[], Value]) -> Value:
    """Call the function on rank 0, and tell the others that it is done or which `UserError` it raised."""
    key = f"announced/{next(_ANNOUNCEMENTS)}"
    try:
        value = function()
    except UserError as error:
        _store().set(key, str(error))
        raise
    _store().set(key, "")
    return value


def _wait_for_first() -> None:
    key, end = f"announced/{next(_ANNOUNCEMENTS)}", time.monotonic() + PREPARATION.total_seconds()
    with _exchange():
        while not _store().check([key]):
            if _watch().lost or time.monotonic() > end:
                raise RuntimeError(_watch().lost or f"rank 0 was not ready after {PREPARATION}")
            time.sleep(0.02)
    mistake = _store().get(key).decode()
    if mistake:
        raise UserError(mistake)


def exchange_reasons(reason: str) -> dict[int, str]:
    """Store why this rank leaves ("": it lost the others). Return the reasons stored so far by rank, its own too."""
    keys = {rank: f"left/{rank}" for rank in range(ranks.size())}
    _watch()  # may wait for rank 0, for as long as torchrun lets it
    first = not _REASONS
    if first:
        _REASONS.append(reason)
        if threading.current_thread() is threading.main_thread():
            # torchrun terminates all ranks once one has ended; this one has to store its reason and close files.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _watch().store_lost:  # a call might never return
        _disconnect()
        return {ranks.rank(): _REASONS[0]}
    end = time.monotonic() + (GRACE if first else 0)
    try:
        if first:
            _store().set(keys[ranks.rank()], reason)
            if _watch().lost:
                _store().set(LOST, _watch().lost)
            _disconnect()
        while not _store().check(list(keys.values())) and time.monotonic() < end:
            time.sleep(0.02)
        return {rank: _store().get(key).decode() for rank, key in keys.items() if _store().check([key])}
    except RuntimeError:
        _watch().store_lost = True
        return {ranks.rank(): _REASONS[0]}


def _disconnect() -> None:
    """Shut the connections down, which ends the sums in which others wait for this rank: destroy_process_group leaves
    them open as long as anything in torch refers to the group."""
    for number in _CONNECTIONS:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
            connection.shutdown(socket.SHUT_RDWR)


def _end_waiting() -> None:
    """Once a rank is lost: end the sum in which this one waits, and this process if that does not help."""
    _disconnect()
    time.sleep(GRACE)
    if not _REASONS:  # it waits for the store, or for a disk
        if not _watch().store_lost or ranks.local_rank() == 0:
            print(f"metarun: {_watch().lost}", file=sys.stderr, flush=True)
        os._exit(1)


def _open_descriptors() -> set[int]:
    """The open file descriptors of this process; none where the system does not list them."""
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir("/dev/fd")}
    return set()


def _is_store_connection(number: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
        return connection.getpeername()[1] == int(os.environ["MASTER_PORT"])
    return True  # no connection, or none yet


def _explain_loss(error: str, overdue: bool) -> str:
    """Describe why the ranks lost one another; `overdue`: this one had waited for long."""
    reasons = exchange_reasons("")
    given = [f"rank {rank}: {reason}" for rank, reason in reasons.items() if reason]
    silent = [rank for rank in range(ranks.size()) if rank not in reasons]
    if found := _watch().lost or _read_loss():
        return found
    if given:
        return given[0]
    if _watch().store_lost:
        return "torchrun has ended"
    if not silent:
        return f"the ranks lost each other ({error})"
    who = name_ranks(silent)
    if overdue:
        return f"{who} gave signs of life but nothing else for {TIMEOUT.total_seconds() / 60:g} minutes"
    return f"{who} ended" if len(silent) == 1 else f"{who} ended or do not answer"


def _read_loss() -> str:
    """Who is lost, by what another rank has noticed."""
    with contextlib.suppress(RuntimeError):  # the store has gone
        return _store().get(LOST).decode() if _store().check([LOST]) else ""
    return ""


def leave_together(error: BaseException, message: str | None) -> NoReturn:
    """End this rank, and with it the job, on an error; `message` if it is a user's mistake.

    The lowest rank among those that got here prints the line for all; without the store, one on each machine.
    """
    lost = isinstance(error, RankLost)
    text = message or (str(error) if lost else f"{type(error).__name__}: {one_line(error)}")
    reasons = exchange_reasons("" if lost else text)
    if ranks.local_rank() == 0 if _watch().store_lost else ranks.rank() == min(reasons):
        whose = "" if lost or set(reasons.values()) == {text} else f"rank {ranks.rank()}: "
        print(f"metarun: {whose}{text}", file=sys.stderr, flush=True)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1 if message is None else 2)  # not by way of threads that may still wait for another rank
