r"""PEARL: actor-critic with a latent task variable inferred from transitions (Rakelly et al. 2019, arXiv 1903.08254).

    q(z | c) = prod_n N(z; mu_n, sigma_n^2) normalised, [mu_n, sigma_n^2] = e(s_n, a_n, r_n), sigma^2 by softplus
             = N(mu, sigma^2),  1/sigma^2 = sum_n 1/sigma_n^2,  mu = sigma^2 sum_n mu_n / sigma_n^2;  N(0, I) for no c
    loss = L_Q(s, a, z) + beta KL(q(z | c) || N(0, I)) + L_V(s, z) + L_pi(s, z),   z ~ q(z | c)

Symbols: e `encoder`, beta `kl_weight` (of one task, so that of the mean over tasks), z of `latent` numbers; the losses
are those of sac.py. The gradient of L_Q alone reaches the encoder through z; in L_V, L_pi and the target V' z is a
constant. V' is carried: after each step V' <- (1 - tau) V' + tau V, tau `target_rate`.

Transitions come from replay buffers of each training task (replay.py), contexts from those of its latest collection.
`context` = false is the same actor-critic without an encoder: z ~ N(0, I) at all times, and beta has no effect.

At a test the first `explore` trajectories are walked with z ~ N(0, I), later ones with z ~ q(z | all before), each
with the actor's mean actions; the state after k trajectories is q(z | their transitions).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from metarun.algorithms import common, sac
from metarun.algorithms.collection import Collection, Transitions, transitions
from metarun.algorithms.collection_sizes import Sizes
from metarun.algorithms.predictive import Gaussian, kl, product
from metarun.algorithms.replay import mixed
from metarun.algorithms.set_learners import ROW_NORMS
from metarun.errors import UserError, require
from metarun.models.multi_network import MultiNetwork, multi_network, own
from metarun.types import CARRIED, Batch, Environment, Kind, LearnerState, Loss, Metrics, NetworkFactory, Params, Task

LEAST_VARIANCE = 1e-7
TARGET = "value."


class Belief(NamedTuple):
    """What is known of a task."""

    params: Params
    z: Gaussian  # [L]


@dataclass(frozen=True)
class Rates:
    """What the losses weigh by."""

    kl_weight: float
    discount: float
    reward_scale: float
    target_rate: float

    def __post_init__(self) -> None:
        require(0 <= self.kl_weight < math.inf, "kl_weight", self.kl_weight, "must be at least 0 and finite")
        require(0 <= self.discount < 1, "discount", self.discount, "must be at least 0 and below 1")
        require(0 < self.reward_scale < math.inf, "reward_scale", self.reward_scale, "must be above 0 and finite")
        require(0 < self.target_rate <= 1, "target_rate", self.target_rate, "must be above 0 and at most 1")


@dataclass(frozen=True)
class Pearl:
    """An actor, two critics, a value network and an encoder."""

    model: MultiNetwork
    loss: Loss
    environment: Environment
    collection: Collection
    context: bool
    rates: Rates
    explore: int
    test_inner_steps: int

    kinds: ClassVar[tuple[Kind, ...]] = ("control",)
    head: ClassVar[bool] = True

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    @property
    def latent(self) -> int:
        return self.collection.latent

    # ------------------------------------------------------------ what is known of a task

    def adapt(self, params: Params, support: Batch) -> Belief:
        """Transitions: rows (s, a) and the rewards that were shown [C, 1] -> q(z | c)."""
        return Belief(params, self.posterior(params, support.x, support.y))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Belief]:
        yield self.adapt(params, support)

    def predict(self, adapted: Belief, x: Tensor) -> Tensor:
        """The mean actions for the mean of z, for rows [M, ...] that begin with what is seen."""
        return self.act(adapted.params, x[:, : self.collection.state], adapted.z.mu.expand(len(x), -1))

    def posterior(self, params: Params, pairs: Tensor, rewards: Tensor) -> Gaussian:
        """q(z | c) of contexts [..., C, F + A] and [..., C, 1]."""
        if not self.context:
            return self.prior(pairs.new_zeros(*pairs.shape[:-2], self.latent))
        mu, s = self._run("encoder", params, pairs, rewards).chunk(2, -1)
        return product(mu, softplus(s).clamp(min=LEAST_VARIANCE))

    def prior(self, like: Tensor) -> Gaussian:
        return Gaussian(torch.zeros_like(like), torch.ones_like(like))

    def act(self, params: Params, state: Tensor, z: Tensor, eps: Tensor | None = None) -> Tensor:
        """The actor's mean action, or a sample of it."""
        out = self._run("actor", params, state, z)
        return out.chunk(2, -1)[0].tanh() if eps is None else sac.squashed(out, eps).a

    # ------------------------------------------------------------ an outer step

    def init_state(self, params: Params) -> LearnerState:
        target = {k: v.clone() for k, v in params.items() if k.startswith(TARGET)}
        return self.collection.empty() | {CARRIED + k: v for k, v in target.items()}

    def before_step(
        self, params: Params, state: LearnerState, tasks: Task, seed: int, step: int
    ) -> tuple[LearnerState, Params, Task]:
        state = self.collection.collected(self, params, state, seed, step)
        target = {k: v for k, v in state.items() if k.startswith(CARRIED)}
        return state, params | target, self.collection.batches(state, tasks, seed, step)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        def outer(params: Params) -> tuple[Tensor, Metrics]:
            z = self.posterior(params, *task.support)
            spent = kl(z, self.prior(z.mu)).sum()
            batch = transitions(task.query, self.environment, self.latent)
            losses, said = self.losses(params, batch, z.at(batch.eps_z))
            loss = losses["critic_loss"] + losses["value_loss"] + losses["actor_loss"] + self.rates.kl_weight * spent
            return loss, {"loss": loss, "kl": spent, **losses, **said}

        return common.differentiate(outer, params)

    def losses(self, params: Params, batch: Transitions, z: Tensor) -> tuple[Metrics, Metrics]:
        """L_Q, L_V and L_pi on a batch with z [B, L]; the mean of min Q and of -log pi."""
        fixed_z, fixed = z.detach(), {k: v.detach() for k, v in params.items()}
        action = sac.squashed(self._run("actor", params, batch.state, fixed_z), batch.eps)
        least_q = torch.minimum(*self.critics(fixed, batch.state, action.a, fixed_z))
        next_value = self._run("value", own(fixed, CARRIED[:-1]), batch.next, fixed_z)[..., 0]
        rewards = self.rates.reward_scale * batch.reward
        value = self._run("value", params, batch.state, fixed_z)[..., 0]
        losses = {
            "critic_loss": sac.critic_loss(
                *self.critics(params, batch.state, batch.action, z), rewards, next_value, self.rates.discount
            ),
            "value_loss": sac.value_loss(value, least_q, action.log_pi),
            "actor_loss": sac.actor_loss(action, least_q),
        }
        return losses, {"q": least_q.mean(), "entropy": -action.log_pi.mean()}

    def critics(self, params: Params, state: Tensor, action: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        q1, q2 = (self._run(name, params, state, action, z)[..., 0] for name in ("critic1", "critic2"))
        return q1, q2

    def after_step(self, params: Params, state: LearnerState) -> LearnerState:
        target = {k: v for k, v in state.items() if k.startswith(CARRIED)}
        return state | mixed(target, {k: params[k.removeprefix(CARRIED)] for k in target}, self.rates.target_rate)

    def metrics(self, state: LearnerState) -> dict[str, float]:
        return self.collection.metrics(state)

    # ------------------------------------------------------------ a test

    def explore_steps(self, params: Params, support: Batch, steps: int) -> Iterator[Belief]:
        start, numbers = self.environment.initial_states(support.x)
        pairs: list[Tensor] = []
        rewards: list[Tensor] = []
        prior = belief = Belief(params, self.prior(numbers[0, : self.latent]))
        yield belief
        for k in range(min(steps, len(start))):
            z = (prior if k < self.explore else belief).z.at(numbers[k, : self.latent])
            path = self.collection.walked(self, params, start[k], support.y[k], z)
            pairs, rewards = [*pairs, path.pairs], [*rewards, path.shown[..., None]]
            belief = Belief(params, self.posterior(params, torch.cat(pairs), torch.cat(rewards)))
            yield belief

    def assess(self, adapted: Belief, task: Task) -> Metrics:
        """The return of trajectories with z ~ q(z | c), and that of the rewards which actor and critics learn from."""
        start, numbers = self.environment.initial_states(task.query.x)
        z = adapted.z.at(numbers[:, : self.latent])
        path = self.collection.walked(self, adapted.params, start, task.query.y, z)
        found = path.shown.sum(-1).mean()
        spent = kl(adapted.z, self.prior(adapted.z.mu)).sum()
        return {
            "loss": -found,
            self.loss.metric: found,
            "learned_return": path.learned.sum(-1).mean(),
            "kl": spent,
            "sigma": adapted.z.sigma.mean(),
        }

    def _run(self, name: str, params: Params, *inputs: Tensor) -> Tensor:
        """A part on inputs side by side, with any leading axes."""
        rows = torch.cat(inputs, -1)
        return self.model.run(name, params, rows.reshape(-1, rows.shape[-1])).reshape(*rows.shape[:-1], -1)


def pearl(
    network: NetworkFactory,
    input_shape: tuple[int, ...],
    outputs: int,
    loss: Loss,
    environment: Environment,
    context: bool,
    latent: int,
    kl_weight: float,
    discount: float,
    reward_scale: float,
    target_rate: float,
    batch: int,
    context_batch: int,
    capacity: int,
    initial_trajectories: int,
    collect_every: int,
    collect_tasks: int,
    trajectories: tuple[int, int, int],
    explore: int,
    test_inner_steps: int,
    initial_actions: str = "policy",
    renew_posterior: bool = False,
) -> Pearl:
    """The networks are of the chosen model's kind, each with the inputs and outputs that its part needs."""
    (state,) = input_shape
    require(
        1 <= latent <= environment.normals_per_trajectory,
        "latent",
        latent,
        f"must be 1 to {environment.normals_per_trajectory}",
    )
    require(explore >= 1, "explore", explore, "must be at least 1: nothing is known before the first trajectory")
    require(test_inner_steps >= 0, "test_inner_steps", test_inner_steps, "must be at least 0")
    rates = Rates(kl_weight, discount, reward_scale, target_rate)
    kept = (batch, context_batch, capacity, initial_trajectories, initial_actions)
    sizes = Sizes(*kept, collect_every, collect_tasks, trajectories, renew_posterior)
    collection = Collection(environment, sizes, latent, state, outputs)
    model = networks(network, state, outputs, latent, context)
    return Pearl(model, loss, environment, collection, context, rates, explore, test_inner_steps)


def networks(network: NetworkFactory, state: int, action: int, latent: int, context: bool) -> MultiNetwork:
    parts = {"encoder": network((state + action + 1,), 2 * latent)} if context else {}
    parts |= {name: network((state + action + latent,), 1) for name in ("critic1", "critic2")}
    parts |= {"value": network((state + latent,), 1), "actor": network((state + latent,), 2 * action)}
    norm = getattr(parts["actor"], "norm", "none")
    if norm not in ROW_NORMS:
        raise UserError(f"model.norm={norm}: must be one of {', '.join(ROW_NORMS)}: states are rows on their own")
    return multi_network(**parts)
