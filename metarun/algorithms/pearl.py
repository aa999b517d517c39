r"""PEARL: actor-critic with a latent task variable inferred from transitions (Rakelly et al. 2019, arXiv 1903.08254).

    q(z | c) = prod_n N(z; mu_n, sigma_n^2) normalised, [mu_n, sigma_n^2] = e(s_n, a_n, r_n), sigma^2 by softplus
             = N(mu, sigma^2),  1/sigma^2 = sum_n 1/sigma_n^2,  mu = sigma^2 sum_n mu_n / sigma_n^2;  N(0, I) for no c
    loss = L_Q(s, a, z) + beta KL(q(z | c) || N(0, I)) + L_V(s, z) + L_pi(s, z),   z ~ q(z | c)

Symbols: e `encoder`, beta `kl_weight` (of one task, so that of the mean over tasks), z of `latent` numbers; the losses
are those of sac.py. The gradient of L_Q alone reaches the encoder through z; in L_V, L_pi and the target V' z is a
constant. V' is carried: after each step V' <- (1 - tau) V' + tau V, tau `target_rate`.

Transitions come from replay buffers of each training task (collection.py), contexts from its latest collection.
`context` = false is the same actor-critic without an encoder: z ~ N(0, I) at all times, and beta has no effect.

At test the first `explore` trajectories have z ~ N(0, I), later ones z ~ q(z | all before), each with the actor's mean
actions; the state after k trajectories is q(z | their transitions).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from metarun.algorithms import sac
from metarun.algorithms.collection import Collection, CollectionSettings, Transitions
from metarun.algorithms.contexts import check_network
from metarun.algorithms.predictive import Gaussian, kl, product
from metarun.compute import linalg
from metarun.data.control import Environment
from metarun.errors import require
from metarun.models.multi_network import MultiNetwork, multi_network, part_params
from metarun.types import CARRIED, Batch, Kind, LearnerState, Loss, Metrics, NetworkFactory, Params, Task

LEAST_VARIANCE = 1e-7
TARGET = "value."


class Belief(NamedTuple):
    """The posterior of a task."""

    params: Params
    z: Gaussian  # [L]


@dataclass(frozen=True)
class PearlSettings:
    """The settings of the losses, of the latent variable and of a test."""

    context: bool
    latent: int
    kl_weight: float
    discount: float
    reward_scale: float
    target_rate: float
    explore: int
    test_inner_steps: int

    def __post_init__(self) -> None:
        require(0 <= self.kl_weight < math.inf, "kl_weight", self.kl_weight, "must be at least 0 and finite")
        require(0 <= self.discount < 1, "discount", self.discount, "must be at least 0 and below 1")
        require(0 < self.reward_scale < math.inf, "reward_scale", self.reward_scale, "must be above 0 and finite")
        require(0 < self.target_rate <= 1, "target_rate", self.target_rate, "must be above 0 and at most 1")
        needed = "must be at least 1: nothing is known before the first trajectory"
        require(self.explore >= 1, "explore", self.explore, needed)
        require(self.test_inner_steps >= 0, "test_inner_steps", self.test_inner_steps, "must be at least 0")


@dataclass(frozen=True)
class Pearl:
    """An actor, two critics, a value network and an encoder."""

    model: MultiNetwork
    loss: Loss
    environment: Environment
    settings: PearlSettings
    collection: Collection

    kinds: ClassVar[tuple[Kind, ...]] = ("control",)
    head: ClassVar[bool] = True

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    @property
    def test_inner_steps(self) -> int:
        return self.settings.test_inner_steps

    # ------------------------------------------------------------ the posterior of a task

    def adapt(self, params: Params, support: Batch) -> Belief:
        """Transitions: rows (s, a) and the rewards that were shown [C, 1] -> q(z | c)."""
        return Belief(params, self.posterior(params, support.x, support.y))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Belief]:
        yield self.adapt(params, support)

    def predict(self, adapted: Belief, x: Tensor) -> Tensor:
        """The mean actions for the mean of z, for rows [M, ...] that begin with an observation."""
        return self.act(adapted.params, x[:, : self.collection.state], adapted.z.mu.expand(len(x), -1))

    def posterior(self, params: Params, pairs: Tensor, rewards: Tensor) -> Gaussian:
        """q(z | c) of contexts [..., C, F + A] and [..., C, 1]."""
        if not self.settings.context:
            return self.prior(pairs.new_zeros(*pairs.shape[:-2], self.settings.latent))
        mu, s = self._run("encoder", params, pairs, rewards).chunk(2, -1)
        return product(mu, softplus(s).clamp(min=LEAST_VARIANCE))

    def prior(self, like: Tensor) -> Gaussian:
        return Gaussian(torch.zeros_like(like), torch.ones_like(like))

    def act(self, params: Params, state: Tensor, z: Tensor, eps: Tensor | None = None) -> Tensor:
        """The actor's mean action, or a sample of it."""
        out = self._run("actor", params, state, z)
        return out.chunk(2, -1)[0].tanh() if eps is None else sac.squash(out, eps).a

    # ------------------------------------------------------------ an outer step

    def init_state(self, params: Params) -> LearnerState:
        target = {k: v.clone() for k, v in params.items() if k.startswith(TARGET)}
        return self.collection.init_state() | {CARRIED + k: v for k, v in target.items()}

    def before_step(
        self, params: Params, state: LearnerState, tasks: Task, seed: int, step: int
    ) -> tuple[LearnerState, Params, Task]:
        state = self.collection.collect(self, params, state, seed, step)
        target = {k: v for k, v in state.items() if k.startswith(CARRIED)}
        return state, params | target, self.collection.draw_batches(state, tasks, seed, step)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        def outer(params: Params) -> tuple[Tensor, Metrics]:
            z = self.posterior(params, *task.support)
            divergence = kl(z, self.prior(z.mu)).sum()
            batch = self.collection.split_transitions(task.query)
            losses, metrics = self.losses(params, batch, z.sample(batch.eps_z))
            loss = losses["critic_loss"] + losses["value_loss"] + losses["actor_loss"]
            loss = loss + self.settings.kl_weight * divergence
            return loss, {"loss": loss, "kl": divergence, **losses, **metrics}

        return linalg.differentiate(outer, params)

    def losses(self, params: Params, batch: Transitions, z: Tensor) -> tuple[Metrics, Metrics]:
        """L_Q, L_V and L_pi on a batch with z [B, L]; the mean of min Q and of -log pi."""
        fixed_z, fixed = z.detach(), {k: v.detach() for k, v in params.items()}
        action = sac.squash(self._run("actor", params, batch.state, fixed_z), batch.eps)
        least_q = torch.minimum(*self.critics(fixed, batch.state, action.a, fixed_z))
        next_value = self._run("value", part_params(fixed, CARRIED[:-1]), batch.next, fixed_z)[..., 0]
        rewards = self.settings.reward_scale * batch.reward
        q1, q2 = self.critics(params, batch.state, batch.action, z)
        value = self._run("value", params, batch.state, fixed_z)[..., 0]
        losses = {
            "critic_loss": sac.critic_loss(q1, q2, rewards, next_value, self.settings.discount),
            "value_loss": sac.value_loss(value, least_q, action.log_pi),
            "actor_loss": sac.actor_loss(action, least_q),
        }
        return losses, {"q": least_q.mean(), "entropy": -action.log_pi.mean()}

    def critics(self, params: Params, state: Tensor, action: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        q1, q2 = (self._run(name, params, state, action, z)[..., 0] for name in ("critic1", "critic2"))
        return q1, q2

    def after_step(self, params: Params, state: LearnerState) -> LearnerState:
        rate, target = self.settings.target_rate, {k: v for k, v in state.items() if k.startswith(CARRIED)}
        return state | {k: (1 - rate) * v + rate * params[k.removeprefix(CARRIED)] for k, v in target.items()}

    def metrics(self, state: LearnerState) -> dict[str, float]:
        return self.collection.metrics(state)

    # ------------------------------------------------------------ a test

    def explore_steps(self, params: Params, support: Batch, steps: int) -> Iterator[Belief]:
        start, numbers = self.environment.initial_states(support.x)
        pairs: list[Tensor] = []
        rewards: list[Tensor] = []
        prior = belief = Belief(params, self.prior(numbers[0, : self.settings.latent]))
        yield belief
        for k in range(min(steps, len(start))):
            z = (prior if k < self.settings.explore else belief).z.sample(numbers[k, : self.settings.latent])
            path = self.collection.roll_out(self, params, start[k], support.y[k], z)
            pairs, rewards = [*pairs, path.pairs], [*rewards, path.shown[..., None]]
            belief = Belief(params, self.posterior(params, torch.cat(pairs), torch.cat(rewards)))
            yield belief

    def assess(self, adapted: Belief, task: Task) -> Metrics:
        """The return of trajectories with z ~ q(z | c), and that of the rewards which actor and critics learn from."""
        start, numbers = self.environment.initial_states(task.query.x)
        z = adapted.z.sample(numbers[:, : self.settings.latent])
        path = self.collection.roll_out(self, adapted.params, start, task.query.y, z)
        shown_return = path.shown.sum(-1).mean()
        return {
            "loss": -shown_return,
            self.loss.metric: shown_return,
            "learned_return": path.learned.sum(-1).mean(),
            "kl": kl(adapted.z, self.prior(adapted.z.mu)).sum(),
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
    settings: PearlSettings,
    collection: CollectionSettings,
) -> Pearl:
    """The networks are of the chosen model's kind, each with the inputs and outputs that its part needs."""
    (state,), action, latent = input_shape, outputs, settings.latent
    most = environment.normals_per_trajectory
    require(1 <= latent <= most, "latent", latent, f"must be 1 to {most}")
    parts = {"encoder": network((state + action + 1,), 2 * latent)} if settings.context else {}
    parts |= {name: network((state + action + latent,), 1) for name in ("critic1", "critic2")}
    parts |= {"value": network((state + latent,), 1), "actor": network((state + latent,), 2 * action)}
    check_network(parts["actor"], "states are rows on their own")
    walks = Collection(environment, collection, latent, state, action)
    return Pearl(multi_network(**parts), loss, environment, settings, walks)
