r"""How an acting learner collects its data: trajectories of many tasks at once, stored in replay buffers (replay.py).

At step 0 every training task gets `initial_trajectories` with z ~ N(0, I); with `initial_actions` = held, each repeats
one action, uniform in [-1, 1]^A, which finds rewards that a policy without knowledge does not. Every `collect_every`
steps after it, `collect_tasks` of them, chosen without replacement, get new `trajectories`:

    prior      z ~ N(0, I)              to the replay buffer and to the recent rows
    posterior  z ~ q(z | those)         to both; with `renew_posterior` one by one, z ~ q(z | all before it)
    extra      z ~ q(z | recent rows)   to the replay buffer alone

The recent rows of a task are those of its latest collection and no others. Every trajectory has a z of its own, from
q(z | c) for a context c that is drawn as in training; actions are sampled. All random numbers are functions of (seed,
outer step, row).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms import replay
from metarun.compute import random
from metarun.data.control import Environment
from metarun.errors import require
from metarun.types import Batch, LearnerState, Params, Task

BATCHES, CHOICE, CONTEXTS, ACTIONS, STARTS = 0, 1, 2, 3, 4  # what random words are for; the last three by kind:
KINDS_APART = 4
PRIOR, POSTERIOR, EXTRA = 0, 1, 2  # kinds of trajectories; beyond them the later rounds of posterior ones
INITIAL_ACTIONS = ("policy", "held")


@dataclass(frozen=True)
class CollectionSettings:
    """The numbers of trajectories and transitions that are collected, stored and drawn."""

    batch: int  # transitions of a task in a gradient
    context_batch: int  # transitions of a context
    capacity: int  # of each task's replay buffer
    initial_trajectories: int
    collect_every: int
    collect_tasks: int
    trajectories: tuple[int, int, int]  # prior, posterior, extra
    initial_actions: str = "policy"
    renew_posterior: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "context_batch", "capacity", "initial_trajectories", "collect_every", "collect_tasks"):
            require(1 <= getattr(self, name) < 2**31, name, getattr(self, name), "must be at least 1")
        choices = "choices: " + ", ".join(INITIAL_ACTIONS)
        require(self.initial_actions in INITIAL_ACTIONS, "initial_actions", self.initial_actions, choices)
        counts = self.trajectories
        sound = len(counts) == 3 and counts[0] >= 1 and min(counts) >= 0
        require(sound, "trajectories", list(counts), "must be [prior, posterior, extra], the first at least 1")
        initial, recent = self.initial_trajectories, self.recent
        needed = f"must be at least {recent}, the prior and posterior trajectories: contexts are drawn from as many"
        require(initial >= recent, "initial_trajectories", initial, needed)

    @property
    def recent(self) -> int:
        """Trajectories that contexts are drawn from."""
        return sum(self.trajectories[:2])

    @property
    def rounds(self) -> tuple[int, ...]:
        """The numbers of posterior trajectories that share a context, one round after the other."""
        count = self.trajectories[1]
        return (1,) * count if self.renew_posterior else (count,) * (count > 0)


class Trajectories(NamedTuple):
    """Trajectories of H steps."""

    pairs: Tensor  # (s, a) [..., H, F + A], s an observation
    learned: Tensor  # rewards that actor and critics learn from [..., H]
    shown: Tensor  # those of contexts and returns
    next: Tensor  # s' [..., H, F]

    def rows(self) -> Tensor:
        """[..., H, W], W = 2 F + A + 2."""
        return torch.cat([self.pairs, self.learned[..., None], self.shown[..., None], self.next], -1)


class Transitions(NamedTuple):
    """The transitions of one task that a gradient is taken on, [B, ...]."""

    state: Tensor
    action: Tensor
    next: Tensor
    eps: Tensor  # of the new action
    eps_z: Tensor  # of the latent variable, the same in all rows
    reward: Tensor  # [B]


@dataclass(frozen=True)
class Collection:
    """Rolls out, stores and draws transitions; the learner that acts is an argument."""

    environment: Environment
    settings: CollectionSettings
    latent: int
    state: int  # F
    action: int  # A

    def __post_init__(self) -> None:
        sound = self.settings.initial_actions != "held" or self.latent >= self.action
        require(sound, "latent", self.latent, f"must be at least {self.action}: initial_actions=held takes them from z")

    def init_state(self) -> LearnerState:
        tasks, recent = len(self.environment.train_tasks()), self.settings.recent * self.environment.horizon
        width = 2 * self.state + self.action + 2
        counts = {"environment_steps": torch.zeros((), dtype=torch.int64), "returned": torch.zeros(tasks)}
        return replay.init_buffers(tasks, self.settings.capacity, recent, width) | counts

    def metrics(self, state: LearnerState) -> dict[str, float]:
        """Transitions so far, and the mean over tasks of the return of the last collection's last kind."""
        steps, returned = state["environment_steps"], state["returned"]
        return {"environment_steps": float(steps), "return": float(returned.double().mean())}

    def roll_out(
        self, learner: Any, params: Params, start: Tensor, y: Tensor, z: Tensor, eps: Tensor | None = None
    ) -> Trajectories:
        """From states [..., S] of tasks y with z [..., L]; mean actions, or samples by eps [..., H, A]."""
        state, seen = start, self.environment.observe(start)
        steps: list[tuple[Tensor, ...]] = []
        for t in range(self.environment.horizon):
            action = learner.act(params, seen, z, None if eps is None else eps[..., t, :])
            state, learned, shown = self.environment.step(state, action, y)
            after = self.environment.observe(state)
            steps.append((torch.cat([seen, action], -1), learned[..., None], shown[..., None], after))
            seen = after
        pairs, learned, shown, following = (torch.stack(part, -2) for part in zip(*steps, strict=True))
        return Trajectories(pairs, learned[..., 0], shown[..., 0], following)

    def split(self, rows: Tensor) -> Trajectories:
        """The parts of rows [..., W]."""
        pair = self.state + self.action
        return Trajectories(rows[..., :pair], rows[..., pair], rows[..., pair + 1], rows[..., pair + 2 :])

    def collect(self, learner: Any, params: Params, state: LearnerState, seed: int, step: int) -> LearnerState:
        """The learner's state after the collection of this step, if it has one."""
        if step % self.settings.collect_every:
            return state
        every = torch.arange(len(state["written"]), device=state["written"].device)
        if step == 0:
            held = self.settings.initial_actions == "held"
            collector = Collector(self, HeldAction(self.action) if held else learner, params, every, seed, step)
            return self._store(state, every, collector.roll_out(self.settings.initial_trajectories, PRIOR), None)
        bits = random.learner_bits(seed, step, range(1), CHOICE, len(every))[0]
        which = every[torch.from_numpy(random.choose(bits, min(self.settings.collect_tasks, len(every)))).to(every)]
        collector = Collector(self, learner, params, which, seed, step)
        prior, _, extra = self.settings.trajectories
        recent = collector.roll_out(prior, PRIOR)
        for i, count in enumerate(self.settings.rounds):
            kind = POSTERIOR if i == 0 else EXTRA + i
            recent = torch.cat([recent, collector.roll_out(count, kind, context=recent)], 1)
        return self._store(state, which, recent, collector.roll_out(extra, EXTRA, context=recent) if extra else None)

    def _store(self, state: LearnerState, which: Tensor, recent: Tensor, extra: Tensor | None) -> LearnerState:
        """Store rows [n, R, W] of these tasks, and the return of the last trajectory of each."""
        rows = recent if extra is None else torch.cat([recent, extra], 1)
        state = replay.replace_recent(state, which, recent[:, -state["recent"].shape[1] :])
        state = replay.add(state, which, rows)
        returned = state["returned"].clone()
        returned[which] = rows[:, -self.environment.horizon :, self.state + self.action + 1].sum(1)
        steps = state["environment_steps"] + rows.shape[0] * rows.shape[1]
        return state | {"returned": returned, "environment_steps": steps}

    def draw_batches(self, state: LearnerState, tasks: Task, seed: int, step: int) -> Task:
        """Context and transitions of each task, with the random numbers that its gradient needs."""
        which, batch, contexts = tasks.query.y[:, 0, -1].long(), self.settings.batch, self.settings.context_batch
        count = batch * self.action + self.latent
        words = random.learner_bits(seed, step, range(len(which)), BATCHES, batch + contexts + 2 * count)
        like = state["replay"]
        uniforms, eps = uniform_like(words[:, : batch + contexts], like), normal_like(words[:, -2 * count :], like)
        eps_a = eps[:, self.latent :].unflatten(1, (batch, self.action))
        eps_z = eps[:, None, : self.latent].expand(-1, batch, -1)
        context = self.split(replay.sample_recent(state, which, uniforms[:, batch:]))
        rows = self.split(replay.sample(state, which, uniforms[:, :batch]))
        x = torch.cat([rows.pairs, rows.next, eps_a, eps_z], -1)
        return Task(Batch(context.pairs, context.shown[..., None]), Batch(x, rows.learned[..., None]))

    def split_transitions(self, batch: Batch) -> Transitions:
        """The parts of the query rows of a task from `draw_batches`."""
        s, a, after, eps, eps_z = batch.x.split([self.state, self.action, self.state, self.action, self.latent], -1)
        return Transitions(s, a, after, eps, eps_z, batch.y[..., 0])


class HeldAction(NamedTuple):
    """A policy without knowledge: one action a trajectory, uniform by the first A numbers of its z ~ N(0, I)."""

    action: int  # A

    def act(self, params: Params, state: Tensor, z: Tensor, eps: Tensor | None = None) -> Tensor:
        return torch.erf(z[..., : self.action] / math.sqrt(2))


class Collector(NamedTuple):
    """One collection for n tasks; the trajectories of a task follow each other in its rows."""

    collection: Collection
    learner: Any
    params: Params
    which: Tensor  # [n]
    seed: int
    step: int

    def roll_out(self, count: int, kind: int, context: Tensor | None = None) -> Tensor:
        """Rows [n, count H, W] with z ~ N(0, I), or from contexts of these rows [n, R, W], one context a task."""
        collection, environment = self.collection, self.collection.environment
        like, horizon, latent = next(iter(self.params.values())), environment.horizon, collection.latent
        eps = normal_like(self._words(ACTIONS, kind, count, 2 * (latent + horizon * collection.action)), like)
        eps = eps.unflatten(0, (-1, count))
        z = eps[..., :latent]
        if context is not None:
            belief = self._posterior(context, kind)
            z = belief.mu[:, None] + belief.sigma[:, None] * z
        start = environment.random_states(self._words(STARTS, kind, count, environment.words_per_state)).to(like)
        y = environment.train_tasks().to(like)[self.which][:, None].expand(-1, count, -1)
        noise = eps[..., latent:].unflatten(-1, (horizon, collection.action))
        paths = collection.roll_out(self.learner, self.params, start.unflatten(0, (-1, count)), y, z, noise)
        return paths.rows().flatten(1, 2)

    def _posterior(self, rows: Tensor, kind: int) -> Any:
        words = self._words(CONTEXTS, kind, 1, self.collection.settings.context_batch)
        index = (uniform_like(words, rows) * rows.shape[1]).long().clamp(max=rows.shape[1] - 1)
        context = self.collection.split(rows[torch.arange(len(rows), device=rows.device)[:, None], index])
        return self.learner.posterior(self.params, context.pairs, context.shown[..., None])

    def _words(self, purpose: int, kind: int, count: int, width: int) -> random.Bits:
        """Random words [n count, width]."""
        numbers = range(len(self.which) * count)
        return random.learner_bits(self.seed, self.step, numbers, purpose + KINDS_APART * kind, width)


def uniform_like(words: random.Bits, like: Tensor) -> Tensor:
    return torch.from_numpy(random.uniform(words, 0, 1)).to(like)


def normal_like(words: random.Bits, like: Tensor) -> Tensor:
    """Standard normals, one for two words."""
    half = words.shape[1] // 2
    return torch.from_numpy(random.normal(words[:, :half], words[:, half:])).to(like)
