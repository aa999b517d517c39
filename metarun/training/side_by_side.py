"""Trainings side by side: runs of one program that differ in their seed or their tasks share each outer step.

    theta_1 .. theta_R, tasks_1 .. tasks_R -> g_1 .. g_R      one call, `vmap` over the runs
    theta <- the optimizer's step along g                     one update of all weights, each tensor [R, ...]

An uncompiled step of a small network is bound by launching kernels and by Python, and R runs share these; compiled
steps gain a fifth, and each R would be compiled anew, so they are left alone. All else is each run's own: its tasks,
records, alarms, validation and checkpoints. Its weights are those of the run alone but for rounding.

A run's bits depend on R and on its slot, never on what the other slots hold. A group that was killed therefore
continues to the same bits, in as many slots as before: those of runs that have ended hold a copy of another run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from metarun.algorithms.objective import NoisyModel
from metarun.compute.compilation import should_compile
from metarun.compute.task_axis import stack_tasks
from metarun.compute.threads import is_small
from metarun.config.schema import Config, to_dict
from metarun.diagnostics.step import Values
from metarun.errors import NonFinite
from metarun.training.experiment import Experiment
from metarun.training.loop import describe, finish_step, is_due, log_update, sample, validate
from metarun.training.meta_gradient import MetaGradient, MetaGradients
from metarun.training.nonfinite import handle_nonfinite, locate_nonfinite
from metarun.training.optimizer import apply_update, build_optimizer, clip_gradient, learning_rate
from metarun.training.own_algorithm import explain_errors
from metarun.training.run import Observer, State, StopReason, Trainer
from metarun.types import Params, StatefulLearner, Task

OWN_POOL = ("pool", "pool_seed", "pool_replaced", "pool_choice")
"""Settings of `train` in which runs of one program may differ, beside `seed`."""


@dataclass
class Member:
    """A run of a group, and how its training ended: a status, or the error of a run that diverged."""

    trainer: Trainer
    state: State
    observer: Observer
    outcome: str | NonFinite | None = None


def are_one_program(configs: Sequence[Config]) -> bool:
    """Whether runs of these settings differ in their seeds and pools of tasks alone."""
    settings = [to_dict(config) for config in configs]
    for one in settings:
        one |= {"seed": None, "resume": None, "train": one["train"] | dict.fromkeys(OWN_POOL)}
    return all(one == settings[0] for one in settings)


def can_share(experiment: Experiment, params: Params) -> bool:
    """Whether a run may share its steps: they are small and not compiled, and no setting concerns this run alone (its
    clock, its bits, a step that is left out, a logger that knows one run in a process)."""
    config, placement, learner = experiment.config, experiment.placement, experiment.algorithm
    plain = config.train.on_nonfinite == "stop" and config.train.max_minutes is None and config.optim.reset == "never"
    plain = plain and placement.processes.size == 1 and not placement.portable and config.logger.name == "none"
    special = (StatefulLearner, NoisyModel)
    plain = plain and not any(isinstance(part, special) for part in (learner, learner.model))
    return plain and is_small(params) and not should_compile(placement, params, config.train.steps)


def train_side_by_side(slots: Sequence[Member | None]) -> None:
    """Train the members, which have done equally many steps, to their last step or until a signal asks to stop, and set
    each one's outcome. None: the slot of a run that has ended or has done more steps."""
    group = Group(slots)
    members, steps = group.members.values(), group.first.trainer.settings.steps
    earlier, share = {id(m): m.state.seconds for m in members}, 1 / len(members)
    start = time.monotonic()
    while group.active and group.step < steps:
        group.make_step()
        for member in group.active.values():
            member.state.seconds = earlier[id(member)] + share * (time.monotonic() - start)
            validate(member.trainer, member.state, member.observer)
        if group.first.observer.stop_requested():
            for member in group.active.values():
                member.observer.save_checkpoint(member.state)
                member.outcome = StopReason.INTERRUPTED.value
    for member in group.active.values():
        member.outcome = "completed"


class Group:
    """The runs of a group by slot, and their weights [R, ...], of which each run's state has views."""

    def __init__(self, slots: Sequence[Member | None]) -> None:
        self.members = {slot: member for slot, member in enumerate(slots) if member}
        self.first = next(iter(self.members.values()))
        self.step = self.first.state.step
        states, trainer = [(member or self.first).state for member in slots], self.first.trainer
        own = states[0].params
        self.params = {name: torch.stack([state.params[name] for state in states]) for name in own}
        self.trained = trainer.trained_names(own)
        self.optimizer = build_optimizer(trainer.optim, {name: self.params[name] for name in self.trained})
        self._stack_moments(states)
        for slot, member in self.members.items():
            member.state.params = {name: whole[slot] for name, whole in self.params.items()}
            views = {name: member.state.params[name] for name in self.trained}
            member.state.optimizer = build_optimizer(trainer.optim, views)
        self.gradients = MetaGradients(trainer, own, self.first.observer.notify, side_by_side=True)

    @property
    def active(self) -> dict[int, Member]:
        """The runs that still train."""
        return {slot: member for slot, member in self.members.items() if member.outcome is None}

    def make_step(self) -> None:
        """One outer step of all runs. One whose meta-gradient is not finite ends, with the weights that it has."""
        drawn = {slot: sample(member.trainer, member.state)[1] for slot, member in self.active.items()}
        anyones, count = next(iter(drawn.values())), len(next(iter(self.params.values())))
        tasks = [drawn.get(slot, anyones) for slot in range(count)]
        with explain_errors(self.first.trainer.algorithm):
            found = self.gradients.at(self.step)(self.params, stack_tasks(tasks))
        if not found.finite.all():
            self._end_nonfinite(found)
        settings, optim = self.first.trainer.settings, self.first.trainer.optim
        logs = is_due(self.step + 1, settings.log_every, settings.steps)
        described = {slot: self._describe(slot, found, drawn[slot]) for slot in self.active} if logs else {}
        lr = learning_rate(optim, self.step, settings.steps)
        limited = found.mean if optim.clip is None else vmap(lambda g: clip_gradient(g, optim.clip))(found.mean)
        apply_update(self.optimizer, self.params, limited, lr)
        self._share_moments()
        self.step += 1
        for slot, member in self.active.items():
            finish_step(member.trainer, member.state, lr)
            if logs:
                values, before = described[slot]
                log_update(member.trainer, member.state, member.observer, values | {"lr": lr}, before)

    def _describe(self, slot: int, found: MetaGradient, tasks: Task) -> tuple[Values, Params]:
        """The metrics of a run's step before the update, and its weights then if they are to be measured."""
        member = self.members[slot]
        values = describe(member.trainer, member.state, _take(found, slot), tasks)
        measured = member.trainer.measures is not None
        return values, {k: v.clone() for k, v in member.state.params.items()} if measured else {}

    def _end_nonfinite(self, found: MetaGradient) -> None:
        for slot, member in self.active.items():
            if not found.finite[slot]:
                where = locate_nonfinite(_take(found, slot), member.trainer.placement.processes)
                try:
                    handle_nonfinite(member.trainer, member.state, where, member.observer)
                except NonFinite as error:
                    member.outcome = error
                member.state.params = {name: view.clone() for name, view in member.state.params.items()}

    def _stack_moments(self, states: Sequence[State]) -> None:
        """The optimizer's state of runs that were stopped, each tensor [R, ...] but for the number of steps."""
        for name in self.trained:
            kept = [state.optimizer.state.get(state.params[name], {}) for state in states]
            if kept[0]:
                self.optimizer.state[self.params[name]] = {
                    key: torch.stack([k[key] for k in kept]) if _is_moment(key, value) else value
                    for key, value in kept[0].items()
                }

    def _share_moments(self) -> None:
        """Give each run's optimizer, which makes no steps of its own, the rates, and views of the state."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for slot, member in self.active.items():
            own = member.state.optimizer
            for group, rate in zip(own.param_groups, rates, strict=True):
                group["lr"] = rate
            if own.state:
                continue
            for name in self.trained:
                kept = self.optimizer.state.get(self.params[name], {})
                views = {key: value[slot] if _is_moment(key, value) else value for key, value in kept.items()}
                if views:
                    own.state[member.state.params[name]] = views


def _is_moment(key: str, value: Any) -> bool:
    return isinstance(value, Tensor) and key != "step"


def _take(found: MetaGradient, slot: int) -> MetaGradient:
    """The meta-gradient of one run."""
    parts: Any = ({k: v[slot] for k, v in p.items()} if isinstance(p, dict) else p[slot] for p in found)
    return MetaGradient(*parts)
