"""Runs that share their steps: each is the run alone but for rounding, and none depends on what the others hold."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainers import RecordingObserver

from metarun.cli.compose import compose
from metarun.config.schema import Config
from metarun.errors import NonFinite
from metarun.jobs.train import train_job
from metarun.jobs.train_together import train_runs
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.experiment import assemble
from metarun.training.loop import train
from metarun.training.run import State
from metarun.training.side_by_side import Member, are_one_program, can_share, train_side_by_side

SMALL = ["train.steps=12", "train.tasks=3", "train.log_every=4", "train.eval_every=6", "train.checkpoint_every=6"]
SMALL += ["val.tasks=4", "test.tasks=5", "test.steps=1", "model.hidden=[8]", "device.precision=float64"]
SMALL += ["device.threads=1", "device.compile=false", "report=false"]


def settings(seed: int, *more: str) -> Config:
    return compose([*SMALL, f"seed={seed}", *more])


def member_of(seed: int, *more: str) -> Member:
    trainer = assemble(settings(seed, *more)).trainer()
    return Member(trainer, trainer.start(), RecordingObserver())


def assert_same_state(ours: State, theirs: State) -> None:
    """Equal to 1e-9 of each tensor's largest entry; the optimizer's moments too."""
    assert (ours.step, ours.best_step) == (theirs.step, theirs.best_step)
    torch.testing.assert_close(ours.best_error, theirs.best_error, rtol=1e-9, atol=0)
    for name, value in theirs.params.items():
        torch.testing.assert_close(ours.params[name], value, rtol=0, atol=1e-9 * float(value.abs().max()))
    pairs = [state.optimizer.state_dict() for state in (ours, theirs)]
    torch.testing.assert_close(*(pair["state"] for pair in pairs), rtol=1e-7, atol=1e-12)
    assert pairs[0]["param_groups"] == pairs[1]["param_groups"]


@pytest.mark.parametrize(
    "more",
    [
        ("algo=maml", "optim.clip=0.5", "optim.schedule=cosine"),
        ("algo=maml", "algo.first_order_until=5"),  # two stages
        ("algo=fomaml", "optim.name=sgd", "optim.momentum=0.9"),
        ("algo=imaml", "reg=l1", "reg.l1.method=prox", "reg.l1.weight=0.01"),
        ("algo=metasgd", "optim.learned_lr=0.01", "train.average=ema"),
        ("algo=reptile", "reg=l2", "reg.l2.warmup=5", "train.pool=4"),
    ],
)
def test_each_run_is_the_run_alone(more: tuple[str, ...]) -> None:
    together = [member_of(seed, *more) for seed in (3, 4, 5)]
    train_side_by_side(together)
    for seed, shared in zip((3, 4, 5), together, strict=True):
        alone = member_of(seed, *more)
        assert train(alone.trainer, alone.state, alone.observer) == shared.outcome == "completed"
        assert_same_state(shared.state, alone.state)
        if alone.state.average:
            assert shared.state.average is not None
            torch.testing.assert_close(shared.state.average.params, alone.state.average.params, rtol=1e-7, atol=1e-12)
        ours, theirs = (m.observer.values for m in (shared, alone))  # type: ignore[attr-defined]
        assert ours.keys() == theirs.keys() == {4, 8, 12}
        for step in theirs:
            assert ours[step] == pytest.approx(theirs[step], rel=1e-6, abs=1e-9)


def test_runs_of_other_pools_share_their_steps() -> None:
    more = [("train.pool=5",), ("train.pool=5", "train.pool_replaced=2"), ("train.pool=9", "train.pool_seed=7")]
    assert are_one_program([settings(0, *m) for m in more])
    together = [member_of(0, *m) for m in more]
    train_side_by_side(together)
    for m, shared in zip(more, together, strict=True):
        alone = member_of(0, *m)
        train(alone.trainer, alone.state, alone.observer)
        assert_same_state(shared.state, alone.state)


def test_the_bits_of_a_run_do_not_depend_on_the_other_slots() -> None:
    single = ("device.precision=float32",)  # where rounding shows
    kept = member_of(1, *single)
    train_side_by_side([member_of(0, *single), kept, member_of(2, *single)])
    for others in ((5, 6), (None, None), (None, 7)):
        again = member_of(1, *single)
        first, last = (None if seed is None else member_of(seed, *single) for seed in others)
        train_side_by_side([first, again, last])
        for name, value in kept.state.params.items():
            assert torch.equal(again.state.params[name], value), (others, name)


def test_one_that_diverges_ends_with_its_last_weights_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    together = [member_of(seed) for seed in (0, 1, 2)]
    dataset = together[1].trainer.dataset
    drawn = type(dataset).episodes

    def spoil(self: Any, split: str, seed: int, step: int, *rest: Any) -> Any:
        task = drawn(self, split, seed, step, *rest)  # type: ignore[arg-type]
        if (seed, step, split) == (1, 5, "train"):
            task.query.y[2] = torch.inf
        return task

    monkeypatch.setattr(type(dataset), "episodes", spoil)
    train_side_by_side(together)
    assert [m.outcome for m in (together[0], together[2])] == ["completed"] * 2
    assert isinstance(together[1].outcome, NonFinite)
    assert "non-finite loss or meta-gradient at step 5, task 2, seed 1" in str(together[1].outcome)
    assert together[1].state.step == 5
    monkeypatch.undo()
    for member, seed in zip(together, (0, 1, 2), strict=True):
        alone = member_of(seed)
        if seed == 1:  # five steps
            trainer = assemble(settings(1)).trainer()
            stopping = RecordingObserver(stop_after=5)
            alone = Member(trainer, trainer.start(), stopping)
        train(alone.trainer, alone.state, alone.observer)
        for name, value in alone.state.params.items():
            torch.testing.assert_close(member.state.params[name], value, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- run folders


def folders(tmp_path: Path, seeds: range, *more: str) -> list[tuple[Config, RunFolder]]:
    return [(settings(seed, *more), RunFolder(tmp_path / str(seed))) for seed in seeds]


def test_each_run_has_the_folder_of_a_run_alone(tmp_path: Path) -> None:
    results = train_runs(folders(tmp_path / "together", range(3)), range(3))
    for seed, result in enumerate(results):
        alone = train_job(settings(seed), RunFolder(tmp_path / "alone" / str(seed)), quiet=True)
        assert result.summary["mean"] == pytest.approx(alone.summary["mean"], rel=1e-9)
        ours, theirs = (RunFolder(tmp_path / kind / str(seed)) for kind in ("together", "alone"))
        assert result.summary["side_by_side"] == 3
        assert ours.read_summary()["status"] == "completed"
        names = [sorted(p.name for p in f.path.rglob("*") if p.name != "cost.json") for f in (ours, theirs)]
        assert names[0] == names[1]
        assert [(r["kind"], r["step"]) for r in ours.read_records()] == [
            (r["kind"], r["step"]) for r in theirs.read_records()
        ]
        sizes = [f.last.stat().st_size for f in (ours, theirs)]
        assert sizes[0] == sizes[1]  # its own weights alone
        params = checkpoint.load(ours.last)["params"]
        for name, value in checkpoint.load(theirs.last)["params"].items():
            torch.testing.assert_close(params[name], value, rtol=1e-9, atol=1e-12)


def test_a_group_that_was_killed_continues_to_the_same_bits(tmp_path: Path) -> None:
    """One run has ended, one stopped at its second checkpoint, one at its first."""
    single = ("device.precision=float32", "train.checkpoint_every=4")
    whole = train_runs(folders(tmp_path / "whole", range(3), *single), range(3))
    slots: list[Any] = folders(tmp_path / "cut", range(3), *single)
    train_runs(slots, range(3))
    for seed, steps in ((1, 8), (2, 4)):  # as after a kill
        config, folder = slots[seed]
        shortened = settings(seed, *single)
        begin = [None, None, None]
        trainer = assemble(shortened).trainer()
        stopped = Member(trainer, trainer.start(), RecordingObserver(stop_after=steps))
        begin[seed] = stopped  # type: ignore[call-overload]
        train_side_by_side(begin)
        checkpoint.save(folder.last, stopped.state)
        folder.write_json("summary.json", folder.read_summary() | {"status": "running"})
        config.resume = str(folder.path)
    train_runs([None, *slots[1:]], [1, 2])
    for seed in (1, 2):
        assert slots[seed][1].read_summary()["params_sha256"] == whole[seed].summary["params_sha256"]


def test_a_signal_stops_all_of_them_and_they_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = folders(tmp_path / "cut", range(2))
    dataset = type(assemble(slots[0][0]).dataset)
    drawn = dataset.episodes

    def stop(self: Any, split: str, seed: int, step: int, *rest: Any) -> Any:
        if (split, seed, step) == ("train", 1, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        return drawn(self, split, seed, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "episodes", stop)
    results = train_runs(slots, range(2))
    assert [r.status for r in results] == ["interrupted"] * 2
    assert [r.summary["steps_done"] for r in results] == [8, 8]
    monkeypatch.undo()
    for config, folder in slots:
        config.resume = str(folder.path)
    continued = train_runs(slots, range(2))
    whole = train_runs(folders(tmp_path / "whole", range(2)), range(2))
    for ours, theirs in zip(continued, whole, strict=True):
        assert ours.status == "completed"
        assert ours.summary["params_sha256"] == theirs.summary["params_sha256"]


# ---------------------------------------------------------------- which runs


@pytest.mark.parametrize(
    "more",
    [
        ("train.max_minutes=5",),
        ("train.on_nonfinite=rewind",),
        ("optim.reset=every_step",),
        ("logger=wandb",),
        ("model.hidden=[200,200]",),
        ("device.compile=true",),
        ("reg=information", "algo.adapted=[head]"),
    ],
)
def test_runs_that_go_alone(more: tuple[str, ...]) -> None:
    experiment = assemble(settings(0, *more))
    assert not can_share(experiment, experiment.initial_params())


def test_runs_whose_bits_are_promised_go_alone() -> None:
    experiment = assemble(settings(0))
    assert can_share(experiment, experiment.initial_params())
    portable = replace(experiment, placement=replace(experiment.placement, portable=True))
    assert not can_share(portable, portable.initial_params())


def test_runs_of_another_program_are_no_group(tmp_path: Path) -> None:
    assert are_one_program([settings(0), settings(1)])
    assert not are_one_program([settings(0), settings(1, "algo.inner_lr=0.5")])
    assert not are_one_program([settings(0), settings(1, "train.steps=13")])
    off = folders(tmp_path / "off", range(2), "device.side_by_side=off")
    results = train_runs(off, [1])  # the other is not asked for yet
    assert [r.folder.name for r in results] == ["1"]
    assert "side_by_side" not in results[0].summary
