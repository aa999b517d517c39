r"""How an acting learner comes by its data: trajectories walked for many tasks at once, kept in replay buffers.

At step 0 every training task is given `initial_trajectories` with z ~ N(0, I); where `initial_actions` = held, each
repeats one action, uniform in [-1, 1]^A, which finds rewards that a policy without knowledge does not. Every
`collect_every` steps after it, `collect_tasks` of them, chosen without replacement, are given new `trajectories`:

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
from metarun.algorithms.collection_sizes import Sizes
from metarun.compute import random
from metarun.errors import require
from metarun.types import Batch, Environment, LearnerState, Params, Task

BATCHES, CHOICE, CONTEXTS, WALKS, STARTS = 0, 1, 2, 3, 4  # what random words are for; the last three of three kinds
KINDS_APART = 4
PRIOR, POSTERIOR, EXTRA = 0, 1, 2  # kinds of trajectories; beyond them the later rounds of posterior ones


class Path(NamedTuple):
    """Trajectories of H steps."""

    pairs: Tensor  # (s, a) [..., H, F + A], s what the learner sees
    learned: Tensor  # rewards that actor and critics learn from [..., H]
    shown: Tensor  # those of contexts and returns
    next: Tensor  # s' [..., H, F]

    def rows(self) -> Tensor:
        return torch.cat([self.pairs, self.learned[..., None], self.shown[..., None], self.next], -1)


class Transitions(NamedTuple):
    """What a gradient of one task is taken on, [B, ...]."""

    state: Tensor
    action: Tensor
    next: Tensor
    eps: Tensor  # of the new action
    eps_z: Tensor  # of the latent variable, the same in all rows
    reward: Tensor  # [B]


def transitions(batch: Batch, environment: Any, latent: int) -> Transitions:
    """The parts of a prepared task's query rows."""
    (state,), action = environment.input_shape(), environment.outputs(1)
    s, a, after, eps, eps_z = batch.x.split([state, action, state, action, latent], -1)
    return Transitions(s, a, after, eps, eps_z, batch.y[..., 0])


@dataclass(frozen=True)
class Collection:
    """Walks, keeps and draws; the learner that acts is an argument."""

    environment: Environment
    sizes: Sizes
    latent: int
    state: int  # F
    action: int  # A

    def __post_init__(self) -> None:
        sound = self.sizes.initial_actions != "held" or self.latent >= self.action
        require(sound, "latent", self.latent, f"must be at least {self.action}: initial_actions=held takes them from z")

    def empty(self) -> LearnerState:
        tasks, rows = len(self.environment.train_tasks()), self.sizes.recent * self.environment.horizon
        width = 2 * self.state + self.action + 2
        counts = {"environment_steps": torch.zeros((), dtype=torch.int64), "returned": torch.zeros(tasks)}
        return replay.empty(tasks, self.sizes.capacity, rows, width) | counts

    def metrics(self, state: LearnerState) -> dict[str, float]:
        """Transitions so far, and the mean over tasks of the return of the last collection's last kind."""
        steps, returned = state["environment_steps"], state["returned"]
        return {"environment_steps": float(steps), "return": float(returned.double().mean())}

    def walked(
        self, learner: Any, params: Params, start: Tensor, y: Tensor, z: Tensor, eps: Tensor | None = None
    ) -> Path:
        """From states [..., S] for tasks y with z [..., L]; mean actions, or samples by eps [..., H, A]."""
        state, seen = start, self.environment.observe(start)
        steps: list[tuple[Tensor, ...]] = []
        for t in range(self.environment.horizon):
            action = learner.act(params, seen, z, None if eps is None else eps[..., t, :])
            state, learned, shown = self.environment.step(state, action, y)
            after = self.environment.observe(state)
            steps.append((torch.cat([seen, action], -1), learned[..., None], shown[..., None], after))
            seen = after
        pairs, learned, shown, following = (torch.stack(part, -2) for part in zip(*steps, strict=True))
        return Path(pairs, learned[..., 0], shown[..., 0], following)

    # ------------------------------------------------------------ collecting

    def collected(self, learner: Any, params: Params, state: LearnerState, seed: int, step: int) -> LearnerState:
        """The carry after the collection of this step, if it has one."""
        if step % self.sizes.collect_every:
            return state
        every = torch.arange(len(state["written"]), device=state["written"].device)
        if step == 0:
            held = self.sizes.initial_actions == "held"
            walk = Walk(self, Held(self.action) if held else learner, params, every, seed, step)
            return self._kept(state, every, walk.prior(self.sizes.initial_trajectories), None)
        bits = random.learner_bits(seed, step, range(1), CHOICE, len(every))[0]
        which = every[torch.from_numpy(random.choose(bits, min(self.sizes.collect_tasks, len(every)))).to(every)]
        walk = Walk(self, learner, params, which, seed, step)
        prior, _, extra = self.sizes.trajectories
        recent = walk.prior(prior)
        for i, count in enumerate(self.sizes.rounds):
            recent = torch.cat([recent, walk.posterior(recent, count, POSTERIOR if i == 0 else EXTRA + i)], 1)
        return self._kept(state, which, recent, walk.posterior(recent, extra, EXTRA) if extra else None)

    def _kept(self, state: LearnerState, which: Tensor, recent: Tensor, extra: Tensor | None) -> LearnerState:
        """With rows [n, R, W] of these tasks kept, and how the last trajectory of each went."""
        rows = recent if extra is None else torch.cat([recent, extra], 1)
        state = replay.renewed(state, which, recent[:, -state["recent"].shape[1] :])
        state = replay.added(state, which, rows)
        returned = state["returned"].clone()
        returned[which] = rows[:, -self.environment.horizon :, self.state + self.action + 1].sum(1)
        steps = state["environment_steps"] + rows.shape[0] * rows.shape[1]
        return state | {"returned": returned, "environment_steps": steps}

    def split(self, rows: Tensor) -> Path:
        """Rows [..., W] by what they hold."""
        pair = self.state + self.action
        return Path(rows[..., :pair], rows[..., pair], rows[..., pair + 1], rows[..., pair + 2 :])

    # ------------------------------------------------------------ drawing

    def batches(self, state: LearnerState, tasks: Task, seed: int, step: int) -> Task:
        """Context and transitions of each task, with the random numbers that its gradient needs."""
        which, size = tasks.query.y[:, 0, -1].long(), self.sizes
        count = size.batch * self.action + self.latent
        words = random.learner_bits(seed, step, range(len(which)), BATCHES, size.batch + size.context_batch + 2 * count)
        like = state["replay"]
        uniforms, rest = uniform_like(words[:, : size.batch + size.context_batch], like), words[:, -2 * count :]
        eps = normal_like(rest, like)
        eps_a = eps[:, self.latent :].unflatten(1, (size.batch, self.action))
        eps_z = eps[:, None, : self.latent].expand(-1, size.batch, -1)
        context = self.split(replay.drawn_recent(state, which, uniforms[:, size.batch :]))
        found = self.split(replay.drawn(state, which, uniforms[:, : size.batch]))
        x = torch.cat([found.pairs, found.next, eps_a, eps_z], -1)
        return Task(Batch(context.pairs, context.shown[..., None]), Batch(x, found.learned[..., None]))


class Held(NamedTuple):
    """Who knows nothing: one action a trajectory, uniform by the first A numbers of its z ~ N(0, I)."""

    action: int  # A

    def act(self, params: Params, state: Tensor, z: Tensor, eps: Tensor | None = None) -> Tensor:
        return torch.erf(z[..., : self.action] / math.sqrt(2))


class Walk(NamedTuple):
    """One collection for n tasks; trajectories of a task follow each other in its rows [n, K H, W]."""

    place: Collection
    learner: Any
    params: Params
    which: Tensor  # [n]
    seed: int
    step: int

    def prior(self, count: int) -> Tensor:
        return self._walked(count, PRIOR, None)

    def posterior(self, rows: Tensor, count: int, kind: int) -> Tensor:
        """With z from contexts of these rows [n, R, W], one context a task."""
        size = self.place.sizes.context_batch
        words = random.learner_bits(self.seed, self.step, range(len(rows)), CONTEXTS + KINDS_APART * kind, size)
        index = (uniform_like(words, rows) * rows.shape[1]).long().clamp(max=rows.shape[1] - 1)
        found = self.place.split(rows[torch.arange(len(rows), device=rows.device)[:, None], index])
        return self._walked(count, kind, self.learner.posterior(self.params, found.pairs, found.shown[..., None]))

    def _walked(self, count: int, kind: int, belief: Any) -> Tensor:
        place, numbers = self.place, range(len(self.which) * count)
        horizon, latent = place.environment.horizon, place.latent
        like = next(iter(self.params.values()))
        width = latent + horizon * place.action
        eps = normal_like(
            random.learner_bits(self.seed, self.step, numbers, WALKS + KINDS_APART * kind, 2 * width), like
        ).unflatten(0, (-1, count))
        z = eps[..., :latent]
        if belief is not None:
            z = belief.mu[:, None] + belief.sigma[:, None] * z
        words = random.learner_bits(
            self.seed, self.step, numbers, STARTS + KINDS_APART * kind, place.environment.words_per_state
        )
        start = place.environment.random_states(words).to(like).unflatten(0, (-1, count))
        y = place.environment.train_tasks().to(like)[self.which][:, None].expand(-1, count, -1)
        noise = eps[..., latent:].unflatten(-1, (horizon, place.action))
        path = place.walked(self.learner, self.params, start, y, z, noise)
        return path.rows().flatten(1, 2)


def uniform_like(words: random.Bits, like: Tensor) -> Tensor:
    return torch.from_numpy(random.uniform(words, 0, 1)).to(like)


def normal_like(words: random.Bits, like: Tensor) -> Tensor:
    """Standard normals, one for two words."""
    half = words.shape[1] // 2
    return torch.from_numpy(random.normal(words[:, :half], words[:, half:])).to(like)
