"""The shares of several ranks, joined: held against the mean over all tasks."""

from __future__ import annotations

import pytest
import torch

from metarun.compute import distributed
from metarun.compute.device import Placement
from metarun.compute.distributed import ProcessGroup
from metarun.training.meta_gradient import MetaGradient, RankShare, join_ranks
from metarun.training.run import StopReason

TASKS = 5


def join_two(monkeypatch: pytest.MonkeyPatch, portable: bool) -> tuple[torch.Tensor, MetaGradient, StopReason | None]:
    """Join the shares of two ranks, whose exchange stays in this process; with the mean of one process."""
    draws = torch.Generator().manual_seed(0)
    grads, extra = torch.randn(TASKS, 1000, generator=draws), torch.randn(1000, generator=draws)
    sent: list[torch.Tensor] = []

    def all_reduce(flat: torch.Tensor) -> torch.Tensor:
        sent.append(flat)
        return torch.stack(sent).sum(0, dtype=flat.dtype)

    monkeypatch.setattr(distributed, "_all_reduce", all_reduce)
    for rank in (0, 1):
        processes = ProcessGroup(rank, 2)
        own = processes.share(TASKS)
        rows = grads[own.start : own.stop]
        once = (extra, torch.tensor(2.0)) if rank == 0 else (torch.zeros(1000), torch.tensor(0.0))
        share = RankShare({"w": rows}, {"loss": rows[:, 0]}, {"w": once[0]}, once[1])
        place = Placement(torch.device("cpu"), torch.float32, 1, False, processes=processes, portable=portable)
        found, reason = join_ranks(place, share, TASKS, StopReason.INTERRUPTED if rank == 1 else None)
    assert torch.equal(found.metrics["loss"], grads[:, 0])
    return grads.mean(0) + extra, found, reason


def test_ranks_find_the_mean_and_agree_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, found, reason = join_two(monkeypatch, portable=False)
    torch.testing.assert_close(found.mean["w"], mean)
    assert not torch.equal(found.mean["w"], mean)
    assert found.penalty == 2
    assert reason is StopReason.INTERRUPTED


def test_portable_ranks_find_the_bits_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, found, reason = join_two(monkeypatch, portable=True)
    assert torch.equal(found.mean["w"], mean)
    assert found.penalty == 2
    assert reason is StopReason.INTERRUPTED
