r"""Several outer steps in one compiled call, without Python between them.

    for i = 0 .. n - 1, until a step is not finite:
        g      =  the meta-gradient of tasks_i at theta, clipped
        m      <- m + (1 - b1) (g - m)
        v      <- b2 v + (1 - b2) g^2
        theta  <- theta - a_i m / (sqrt(v) / r_i + e)

Symbols: theta the trained meta-parameters, m and v Adam's moments, e `optim.eps`; of the t-th update a_i = lr_i / (1 -
b1^t) and r_i = sqrt(1 - b2^t), computed in double precision outside. SGD has theta <- theta - lr_i g alone.

A step of a small network is bound by Python, and this leaves none of it but the drawing of tasks. One program makes any
number of steps up to AT_ONCE, so that bits do not depend on where a run logs, validates or was stopped. A call ends
where something has to happen after a step: records, validation, probes, checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from metarun.algorithms.objective import Entry
from metarun.compute.compilation import compile_function, is_known, should_compile
from metarun.compute.task_axis import take_step
from metarun.compute.threads import is_connected
from metarun.training.meta_gradient import COMPILING, MetaGradient, build_meta_gradient, decisive_parts
from metarun.training.optimizer import build_optimizer, clip_gradient, learning_rate
from metarun.training.run import AT_ONCE, State, Trainer
from metarun.types import MOMENTS, Params, StagedLearner, StatefulLearner, Task

FIRST, SECOND = "exp_avg", "exp_avg_sq"
"""Adam's moments m and v in the state of torch's optimizer."""


class Rule(NamedTuple):
    """The constants of an update."""

    clip: float | None
    betas: tuple[float, float] | None  # of Adam; None: SGD
    eps: float


class Carried(NamedTuple):
    """What a step hands to the next one. All trained meta-parameters are one vector [P]."""

    done: Tensor  # updates
    theta: Tensor
    moments: tuple[Tensor, ...]  # m and v; none with SGD
    before: Tensor  # theta before the last step
    last: MetaGradient  # of the last step, without its mean; if it is not finite, the step made no update


class Inputs(NamedTuple):
    """Of AT_ONCE steps."""

    tasks: Task  # each tensor [AT_ONCE, T, ...]
    rates: Tensor  # a_i
    roots: Tensor  # r_i


def can_compile_steps(trainer: Trainer, params: Params) -> bool:
    """Whether a run's steps may be one program: they are compiled, of metarun's own parts, and between two of them
    nothing but the optimizer changes anything."""
    placement, optim, terms = trainer.placement, trainer.optim, trainer.regularization
    plain = placement.device.type == "cpu" and placement.processes.size == 1 and not trainer.noisy
    plain = plain and trainer.settings.average == "none" and optim.reset == "never"
    plain = plain and not optim.weight_decay and optim.learned_lr is None
    plain = plain and (optim.name == "adam" or (optim.name == "sgd" and not optim.momentum))
    plain = plain and not terms.select(Entry.OUTER_STEP) and not any(t.schedule.changes for t in terms.terms)
    plain = plain and not isinstance(trainer.algorithm, StatefulLearner)
    plain = plain and not any(name.startswith(MOMENTS) for name in params)
    # With convolutions a step takes so long that nothing beside it counts, and the images of many fill memory.
    plain = plain and is_connected(params) and should_compile(placement, params, trainer.settings.steps)
    return plain and is_known(decisive_parts(trainer))


class CompiledSteps:
    """The outer steps of a run, compiled where they are called first, and where a StagedLearner's stage changes."""

    def __init__(self, trainer: Trainer, params: Params, notify: Callable[[str], None]) -> None:
        self.trainer, self.params, self.notify, self.names = trainer, params, notify, trainer.trained_names(params)
        group = build_optimizer(trainer.optim, params).param_groups[0]
        self.rule = Rule(trainer.optim.clip, group.get("betas"), group.get("eps", 0.0))
        self.staged: Any = trainer.algorithm if isinstance(trainer.algorithm, StagedLearner) else None
        self.stage: Any = None
        self.function: Callable[..., Any] | None = None
        self.last: MetaGradient | None = None
        self.compiling = False

    def at(self, step: int) -> CompiledSteps:
        """The same, ready for an outer step; `compiling`: the next call compiles."""
        stage = self._stage_of(step)
        self.compiling = self.function is None or stage != self.stage
        if self.compiling:
            self.stage, self.last = stage, None
            learner = self.staged.at(stage) if self.staged else self.trainer.algorithm
            self._build(replace(self.trainer, algorithm=learner))
        return self

    def _build(self, trainer: Trainer) -> None:
        self.notify(COMPILING)
        self.meta_gradient = build_meta_gradient(trainer)
        steps = partial(make_steps, _traced_loop, self.meta_gradient, self.names, self.rule)
        parts = decisive_parts(trainer), self.names, self.rule
        self.function = compile_function(steps, trainer.placement, self.params, parts, self._piece_by_piece)

    def _piece_by_piece(self) -> Callable[..., Any]:
        """Steps whose meta-gradient alone is compiled, by another compiler."""
        return partial(make_steps, _loop, torch.compile(self.meta_gradient, dynamic=False), self.names, self.rule)

    def _stage_of(self, step: int) -> Any:
        return self.staged.stage(step) if self.staged else None

    def count(self, state: State) -> int:
        """The steps to the next one after which something has to happen, AT_ONCE at most."""
        trainer, settings = self.trainer, self.trainer.settings
        every = [settings.log_every, settings.eval_every, settings.checkpoint_every]
        every += [trainer.probe_every] if trainer.probe else []
        most = min(trainer.at_once, settings.steps - state.step, *(e - state.step % e for e in every))
        return next((i for i in range(1, most) if self._stage_of(state.step + i) != self.stage), most)

    def __call__(self, state: State, count: int, tasks: Task) -> tuple[Params, MetaGradient]:
        """Make `count` steps in place, with tasks [AT_ONCE, T, ...].

        Return the meta-parameters before the last step, and its meta-gradient without the mean. If that is not finite,
        the step made no update, and no later one was begun.
        """
        assert self.function is not None
        moved = {name: state.params[name] for name in self.names}
        kept = [state.optimizer.state[p] for p in moved.values()]
        if self.rule.betas and not kept[0]:
            for own, p in zip(kept, moved.values(), strict=True):
                own |= {"step": torch.zeros(()), FIRST: torch.zeros_like(p), SECOND: torch.zeros_like(p)}
        moments = [[own[key] for own in kept] for key in (FIRST, SECOND) if self.rule.betas]
        theta, place = flatten(moved.values()), self.last or self.meta_gradient(state.params, take_step(tasks, 0))
        place = place._replace(mean={}, finite=torch.tensor(True))
        start = Carried(torch.tensor(0), theta, tuple(map(flatten, moments)), theta, place)
        given = Inputs(tasks, *self._numbers(state, count, like=theta))
        made = Carried(*self.function(torch.tensor(count), state.params, start, given))
        self.last, before = made.last, unflatten(made.before, moved)
        for whole, parts in zip((made.theta, *made.moments), ([*moved.values()], *moments), strict=True):
            for new, old in zip(unflatten(whole, moved).values(), parts, strict=True):
                old.copy_(new)
        for own in kept if self.rule.betas else ():
            own["step"] += made.done
        state.step += int(made.done)
        return state.params | before, made.last

    def _numbers(self, state: State, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """a_i and r_i; the optimizer's groups get the rate of the last of `count` steps."""
        optim, steps = self.trainer.optim, self.trainer.settings.steps
        rates = [learning_rate(optim, step, steps) for step in range(state.step, state.step + AT_ONCE)]
        for group in state.optimizer.param_groups:
            group["lr"] = rates[count - 1]
        roots = [1.0] * AT_ONCE
        if self.rule.betas:
            (b1, b2), made = self.rule.betas, int(state.optimizer.state[state.params[self.names[0]]]["step"])
            rates = [rate / (1 - b1**t) for t, rate in enumerate(rates, made + 1)]
            roots = [math.sqrt(1 - b2**t) for t in range(made + 1, made + 1 + AT_ONCE)]
        return like.new_tensor(rates), like.new_tensor(roots)


def make_steps(
    loop: Callable[..., Any],
    meta_gradient: Callable[[Params, Task], MetaGradient],
    names: Sequence[str],
    rule: Rule,
    count: Tensor,
    params: Params,
    start: Carried,
    given: Inputs,
) -> Any:
    """`count` steps, or those up to the first that is not finite; `names` are those of theta, in order."""
    moved = {name: params[name] for name in names}

    def goes_on(now: Carried, fixed: Any) -> Tensor:
        return (now.done < fixed[0]) & now.last.finite

    def step(now: Carried, fixed: Any) -> Carried:
        _, params, given = fixed
        own = tree_map(lambda x: x.index_select(0, now.done.reshape(1)).squeeze(0), given)
        found = meta_gradient(params | unflatten(now.theta, moved), own.tasks)
        new = update(rule, now, flatten(clip_gradient(found.mean, rule.clip).values()), own)
        kept = tree_map(lambda a, b: torch.where(found.finite, a, b), new, (now.theta, now.moments))
        return Carried(now.done + found.finite, kept[0], kept[1], now.theta.clone(), found._replace(mean={}))

    return loop(goes_on, step, start, (count, params, given))


def update(rule: Rule, now: Carried, g: Tensor, own: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
    """theta and the moments after a step along g."""
    if rule.betas is None:
        return now.theta - own.rates * g, ()
    b1, b2 = rule.betas
    m, v = torch.lerp(now.moments[0], g, 1 - b1), b2 * now.moments[1] + (1 - b2) * g.square()
    return now.theta - own.rates * m / (v.sqrt() / own.roots + rule.eps), (m, v)


def flatten(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def unflatten(whole: Tensor, like: Params) -> Params:
    parts = whole.split([value.numel() for value in like.values()])
    return {name: part.view_as(value) for (name, value), part in zip(like.items(), parts, strict=True)}


def _loop(goes_on: Callable[..., Tensor], step: Callable[..., Carried], carried: Carried, fixed: Any) -> Carried:
    while goes_on(carried, fixed):
        carried = step(carried, fixed)
    return carried


def _traced_loop(goes_on: Callable[..., Tensor], step: Callable[..., Carried], carried: Carried, fixed: Any) -> Carried:
    """The same as one operator of a graph.

    torch's own `while_loop` would trace it by another tracer, which makes numbers that differ from those of an earlier
    call, such as an inner rate, inputs of an unknown value.
    """
    from torch._higher_order_ops.while_loop import while_loop_op  # imports sympy

    (own, tree), (other, fixed_tree) = tree_flatten(carried), tree_flatten(fixed)

    def rebuild(leaves: Sequence[Tensor]) -> tuple[Carried, Any]:
        return tree_unflatten(leaves[: len(own)], tree), tree_unflatten(leaves[len(own) :], fixed_tree)

    def flat_condition(*leaves: Tensor) -> Tensor:
        return goes_on(*rebuild(leaves))

    def flat_step(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(step(*rebuild(leaves))))

    return tree_unflatten(while_loop_op(flat_condition, flat_step, tuple(own), tuple(other)), tree)
