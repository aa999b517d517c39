r"""The losses of soft actor-critic with two critics and a value network (Haarnoja et al. 2018, arXiv 1801.01290).

    a = tanh(u),  u = mu(s) + sigma(s) eps,  eps ~ N(0, I)
    log pi(a | s) = sum_j [ log N(u_j; mu_j, sigma_j) - log(1 - tanh(u_j)^2) ]
    L_Q  = sum_i mean (Q_i(s, a) - (c r + gamma V'(s')))^2
    L_V  = mean (V(s) - (min_i Q_i(s, a') - log pi(a' | s)))^2,     a' ~ pi(. | s)
    L_pi = mean (log pi(a' | s) - min_i Q_i(s, a')) + w (mean mu^2 + mean (log sigma)^2)

Symbols: c `reward_scale`, gamma `discount`, V' the target network, w = 1e-3. The targets of L_Q and L_V are constants;
L_pi moves the actor alone, its derivative goes through a' and not to the critics' weights.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import softplus

LOG_STD = (-20.0, 2.0)
DECAY = 1e-3
"""w, of the actor's outputs."""


class Action(NamedTuple):
    """A sample, and how likely it is."""

    a: Tensor  # [..., A], inside of (-1, 1)
    log_pi: Tensor  # [...]
    mu: Tensor  # [..., A], before tanh
    log_std: Tensor


def squash(out: Tensor, eps: Tensor) -> Action:
    """From an actor's outputs [..., 2 A] and standard normals [..., A]."""
    mu, log_std = out.chunk(2, -1)
    log_std = log_std.clamp(*LOG_STD)
    u = mu + log_std.exp() * eps
    log_normal = -0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which does not cancel where tanh is near 1.
    log_slope = 2 * (math.log(2) - u - softplus(-2 * u))
    return Action(u.tanh(), (log_normal - log_slope).sum(-1), mu, log_std)


def critic_loss(q1: Tensor, q2: Tensor, reward: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """L_Q, for rewards that are scaled already; all [B]."""
    target = (reward + discount * next_value).detach()
    return (q1 - target).square().mean() + (q2 - target).square().mean()


def value_loss(value: Tensor, least_q: Tensor, log_pi: Tensor) -> Tensor:
    """L_V."""
    return (value - (least_q - log_pi).detach()).square().mean()


def actor_loss(action: Action, least_q: Tensor) -> Tensor:
    """L_pi."""
    return (action.log_pi - least_q).mean() + DECAY * (action.mu.square().mean() + action.log_std.square().mean())
