"""Outer steps in one compiled call: those of the loop, whatever ends a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainers import RecordingObserver

from metarun.cli.compose import compose
from metarun.errors import NonFinite
from metarun.training import compiled_steps, loop
from metarun.training.compiled_steps import can_compile_steps
from metarun.training.experiment import assemble
from metarun.training.loop import train
from metarun.training.run import AT_ONCE, State, Trainer

SMALL = ["train.steps=90", "train.tasks=3", "train.log_every=40", "train.eval_every=60", "train.checkpoint_every=60"]
SMALL += ["val.tasks=2", "test.tasks=2", "test.steps=1", "model.hidden=[4]", "device.compile=true", "device.threads=1"]
DOUBLE = "device.precision=float64"


def trainer_of(*more: str) -> Trainer:
    return assemble(compose([*SMALL, *more])).trainer()


def trained(trainer: Trainer, state: State | None = None) -> tuple[State, RecordingObserver]:
    state, observer = state or trainer.start(), RecordingObserver()
    assert train(trainer, state, observer) == "completed"
    return state, observer


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls as Python."""
    monkeypatch.setattr(compiled_steps, "compile_function", lambda *given: given[-1]())
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def step_by_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], tuple[State, RecordingObserver]]:
    """Trains without such calls."""

    def plain(trainer: Trainer) -> tuple[State, RecordingObserver]:
        with monkeypatch.context() as context:
            context.setattr(loop, "can_compile_steps", lambda *_: False)
            return trained(replace(trainer, placement=replace(trainer.placement, compile=False)))

    return plain


def assert_same_state(ours: State, theirs: State, rtol: float = 1e-9) -> None:
    assert (ours.step, ours.best_step) == (theirs.step, theirs.best_step)
    for name, value in theirs.params.items():
        torch.testing.assert_close(ours.params[name], value, rtol=0, atol=rtol * float(value.abs().max()))
    pairs = [state.optimizer.state_dict() for state in (ours, theirs)]
    if ours.optimizer.param_groups[0].get("betas"):
        torch.testing.assert_close(*(pair["state"] for pair in pairs), rtol=100 * rtol, atol=1e-12)
    assert pairs[0]["param_groups"] == pairs[1]["param_groups"]


@pytest.mark.parametrize(
    "more",
    [
        ("algo=maml", "optim.clip=0.5", "optim.schedule=cosine"),
        ("algo=maml", "algo.first_order_until=45"),  # two stages
        ("algo=fomaml", "optim.name=sgd", "optim.lr=0.1", "reg=l2"),
        ("algo=reptile", "train.pool=4"),
        ("algo=metasgd", "optim.schedule=halving", "optim.halve_every=20", "train.log_every=7"),
        ("algo=imaml", "algo.inner_steps=2"),
    ],
)
def test_the_steps_are_those_of_the_loop(more: tuple[str, ...], uncompiled: None, step_by_step: Any) -> None:
    trainer = trainer_of(DOUBLE, *more)
    assert can_compile_steps(trainer, trainer.start().params)
    (ours, seen), (theirs, expected) = trained(trainer), step_by_step(trainer)
    assert_same_state(ours, theirs)
    assert seen.values.keys() == expected.values.keys()
    for step, values in expected.values.items():
        assert seen.values[step] == pytest.approx(values, rel=1e-6, abs=1e-9)


def spoil(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, bad: int) -> None:
    """Make a task of one step infinite."""
    drawn = type(trainer.dataset).episodes

    def episodes(self: Any, split: Any, seed: int, step: int, *rest: Any) -> Any:
        task = drawn(self, split, seed, step, *rest)
        if (split, step) == ("train", bad):
            task.query.y[1] = torch.inf
        return task

    monkeypatch.setattr(type(trainer.dataset), "episodes", episodes)


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_step_that_is_not_finite_is_left_out(
    policy: str, uncompiled: None, step_by_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(DOUBLE, "algo=maml", f"train.on_nonfinite={policy}", "train.checkpoint_every=20")
    spoil(monkeypatch, trainer, 50)
    (ours, seen), (theirs, expected) = trained(trainer), step_by_step(trainer)
    assert_same_state(ours, theirs)
    assert [note for note in seen.notes if "step 50, task 1" in note]
    assert set(expected.notes) <= set(seen.notes)


def test_or_ends_the_run_with_the_weights_before_it(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(DOUBLE, "algo=maml")
    spoil(monkeypatch, trainer, 50)
    state = trainer.start()
    with pytest.raises(NonFinite, match="at step 50, task 1"):
        train(trainer, state, RecordingObserver())
    assert state.step == 50
    assert all(p.isfinite().all() for p in state.params.values())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), True),
        (("algo=imaml",), True),
        (("algo=cnp", "data=gp"), False),  # adds noise
        (("train.average=ema",), False),
        (("optim=adamw",), False),
        (("optim.name=sgd", "optim.momentum=0.9"), False),
        (("optim.reset=every_step",), False),
        (("reg=l2", "reg.l2.warmup=5"), False),
        (("reg=l1", "reg.l1.method=prox"), False),
        (("algo=metasgd", "optim.learned_lr=0.01"), False),
        (("algo=reptile", "algo.inner_optimizer=adam", "algo.moments=carried"), False),
        (("device.compile=false",), False),
    ],
)
def test_what_else_changes_a_run_between_two_steps_keeps_them_apart(more: tuple[str, ...], expected: bool) -> None:
    trainer = trainer_of(*more)
    assert can_compile_steps(trainer, trainer.start().params) is expected


class Looking:
    def on_step(self, state: State) -> None: ...


class Waiting:
    def on_end(self, summary: dict[str, Any]) -> None: ...


def test_a_callback_that_looks_at_each_step_sees_each_step() -> None:
    for callbacks, expected in (([Waiting()], AT_ONCE), ([Waiting(), Looking()], 1)):
        experiment = replace(assemble(compose([*SMALL, "algo=maml"])), callbacks=callbacks)
        assert experiment.trainer().at_once == expected


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the one program of the tests below."""
    path = tmp_path_factory.mktemp("libraries")
    with pytest.MonkeyPatch.context() as context:
        context.setenv("TORCHINDUCTOR_CACHE_DIR", str(path))
        yield path


def test_compiled_steps_are_those_of_the_loop(cache: Path, step_by_step: Any) -> None:
    """In single precision: to the rounding of 90 steps."""
    trainer = trainer_of("algo=maml")
    (ours, _), (theirs, _) = trained(trainer), step_by_step(trainer)
    assert_same_state(ours, theirs, rtol=1e-5)


def test_bits_depend_neither_on_records_nor_on_where_a_run_was_stopped(cache: Path) -> None:
    whole = trained(trainer_of("algo=maml"))[0]
    records = trained(trainer_of("algo=maml", "train.log_every=7", "train.eval_every=11"))[0]
    single = trained(replace(trainer_of("algo=maml"), at_once=1))[0]
    first = trainer_of("algo=maml")
    stopped = trained(replace(first, settings=replace(first.settings, steps=37)))[0]
    resumed = trained(trainer_of("algo=maml"), stopped)[0]
    for other in (records, single, resumed):
        for name, value in whole.params.items():
            assert torch.equal(other.params[name], value)
        for p, own in zip(other.params.values(), whole.params.values(), strict=True):
            assert torch.equal(other.optimizer.state[p]["exp_avg_sq"], whole.optimizer.state[own]["exp_avg_sq"])
    assert len(list(cache.glob("*.so"))) == 1
