r"""The distributions that neural processes and conditional autoencoders predict, and their scores.

A learner with latent variables predicts the mixture (1/L) sum_l N(mu_l, sigma_l^2) over L draws of z; without, L = 1.

    mean, deviation   of the mixture: mu = mean_l mu_l,  sigma^2 = mean_l (sigma_l^2 + mu_l^2) - mu^2
    coverage_p        share of y with |F(y) - 1/2| <= p/200, F the mixture's distribution function: central p % bands
    log-mean-exp      log (1/L) sum_l w_l of importance weights w_l = p(y | z_l) p(z_l) / q(z_l), z_l ~ q: on average
                      a lower bound of log p(y), the nearer the larger L (Burda et al. 2016, arXiv 1509.00519); the
                      ELBO is the mean of log w_l

The draws of a test are the same L standard normal vectors for all tasks, so that a test is a function of the weights.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.algorithms.losses import log_density
from metarun.compute import random
from metarun.compute.linalg import sqrt
from metarun.data.gp import LEVELS
from metarun.types import Metrics, Task

TEST_STEP = 2**42
"""Beyond every outer step."""

CHUNKS = 10
"""Of the draws of z that a decoder takes one after the other: 50 for every pixel of an image, of many tasks at once,
fill the memory."""


class Gaussian(NamedTuple):
    """A Gaussian with independent entries."""

    mu: Tensor
    sigma: Tensor

    def sample(self, eps: Tensor) -> Tensor:
        """From standard normals eps."""
        return self.mu + self.sigma * eps

    def log_density(self, z: Tensor) -> Tensor:
        """Summed over the last axis."""
        return log_density(self.mu, self.sigma, z)


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) of each entry, in nats."""
    ratio, away = q.sigma / p.sigma, (q.mu - p.mu) / p.sigma
    return 0.5 * (ratio**2 + away**2 - 1) - ratio.log()


def product(mu: Tensor, variance: Tensor) -> Gaussian:
    """The normalised product of C Gaussians, from means and variances [..., C, D]: precisions add up, and the mean is
    that of the means weighed by them."""
    precision = 1 / variance
    whole = 1 / precision.sum(-2)
    return Gaussian(whole * (mu * precision).sum(-2), sqrt(whole))


def decoder_std(s: Tensor, floor: float) -> Tensor:
    """A decoder's standard deviation: floor + (1 - floor) softplus(s), as published with floor = 0.1."""
    return floor + (1 - floor) * torch.nn.functional.softplus(s)


def draw_normals(count: int, width: int, like: Tensor) -> Tensor:
    """The standard normal numbers [L, D] of a test."""
    return _draw_normals(count, width).to(like)


@functools.lru_cache(maxsize=16)
def _draw_normals(count: int, width: int) -> Tensor:
    return torch.from_numpy(random.noise(0, TEST_STEP, range(count), width))


def log_mean_exp(values: Tensor) -> Tensor:
    """Over the first axis."""
    return values.logsumexp(0) - math.log(len(values))


def summarize_mixture(components: Gaussian) -> Gaussian:
    """Mean and standard deviation of mixtures, from components [L, ...]."""
    mean = components.mu.mean(0)
    variance = (components.sigma.square() + (components.mu - mean).square()).mean(0)
    return Gaussian(mean, sqrt(variance))


def score_mixture(components: Gaussian, y: Tensor) -> Metrics:
    """MSE of the mean and coverage, of predictions [L, M, d_out]."""
    mse = (components.mu.mean(0) - y).square().mean()
    below = torch.special.ndtr((y - components.mu) / components.sigma).mean(0)
    shares = {f"coverage_{p}": ((below - 0.5).abs() <= p / 200).to(y).mean() for p in LEVELS}
    return {"mse": mse, **shares}


def assess_gaussians(query: Gaussian, context: Gaussian, task: Task, metric: str) -> Metrics:
    """The scores of a learner without latent variables, whose log-likelihood is exact: loss, metric and the others."""
    log_likelihood = query.log_density(task.query.y).mean()
    return {
        "loss": -log_likelihood,
        metric: log_likelihood,
        "pointwise_log_likelihood": log_likelihood,
        "context_log_likelihood": context.log_density(task.support.y).mean(),
        **score_mixture(Gaussian(*(v[None] for v in query)), task.query.y),
    }


def pointwise_log_likelihood(components: Gaussian, y: Tensor) -> Tensor:
    """Mean over rows of log (1/L) sum_l p(y_m | z_l), for predictions [L, M, d_out]."""
    return log_mean_exp(components.log_density(y)).mean()
