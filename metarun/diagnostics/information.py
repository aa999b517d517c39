r"""Bounds of mutual information, in nats, from samples: of two views of one thing, and of a code and its source.

    InfoNCE    I(X; Y) >= E [ (1/N) sum_i log( e^f(x_i, y_i) / ((1/N) sum_j e^f(x_i, y_j)) ) ]     for every f
    known      I(Z; D) >= the same with f(z, d) = log q(z | d) and z_i ~ q(z | d_i)
    variational  I(Z; D) = E KL(q(z | d) || m) - KL(q(z) || m) <= E KL(q(z | d) || m)    for every m, q(z) = E q(z | d)

InfoNCE: van den Oord et al. 2018, arXiv 1807.03748; all three in Poole et al. 2019, arXiv 1905.06922 (equations 10, 12
and 2). The first two are at most log N of the N samples, whatever I is: a value near log N means that more samples
are needed; it is no estimate of I. An f (or m) that was fitted must be fitted on other samples than it is judged on.

Symbols: N samples (here tasks), x_i and y_i two views of sample i, f a critic, z a code of length D that q draws for
the data d, m a density of z. The critic here is that of jointly Gaussian views, which is the best one if they are:
with canonical correlations rho_k and variates a, b of unit variance

    f = sum_k [ rho_k a_k b_k - rho_k^2 (a_k^2 + b_k^2) / 2 ] / (1 - rho_k^2) - log(1 - rho_k^2) / 2

of the principal components of x and y. As views of one thing are exchangeable both have the same moments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 1 - 1e-6  # of a canonical correlation: views that are the same would have an infinite critic
LEAST = 1e-10  # of a component's variance, relative to the largest

EACH = 20  # samples for each component of the critic
SCALES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0)  # of its scores; 0 knows nothing and has a bound of 0


class Bound(NamedTuple):
    """An estimate of a bound, and half of its 95 % interval over samples (the other samples being as they are)."""

    value: float
    half: float


class Critic(NamedTuple):
    """The Gaussian critic: views [N, R] -> variates [N, K] by (x - centre) @ maps."""

    centre: Tensor  # [R]
    maps: Tensor  # [R, K]
    rho: Tensor  # [K]

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """f(x_i, y_j), [N, N]."""
        a, b = ((view - self.centre) @ self.maps for view in (x, y))
        rest = 1 - self.rho**2
        own = [(self.rho**2 / rest * v**2).sum(1) / 2 for v in (a, b)]
        return (a * self.rho / rest) @ b.T - own[0][:, None] - own[1] - rest.log().sum() / 2


def gaussian_critic(x: Tensor, y: Tensor, components: int) -> Critic:
    """From views [N, R] of other samples, by their `components` largest principal components."""
    both = torch.cat([x, y])
    centre = both.mean(0)
    variances, axes = torch.linalg.eigh((both - centre).T @ (both - centre) / len(both))
    kept = (variances > max(LEAST * float(variances[-1]), torch.finfo(x.dtype).tiny)).nonzero().flatten()[-components:]
    white = axes[:, kept] / variances[kept].sqrt()
    a, b = ((view - centre) @ white for view in (x, y))
    cross = a.T @ b / len(x)
    rho, turn = torch.linalg.eigh((cross + cross.T) / 2)
    return Critic(centre, white @ turn, rho.clamp(-LARGEST, LARGEST))


def info_nce(scores: Tensor) -> Bound:
    """Of f(x_i, y_j) [N, N]; at most log N."""
    each = scores.diagonal() - scores.logsumexp(1) + math.log(len(scores))
    return _mean_bound(each)


def views_information(x: Tensor, y: Tensor, components: int) -> Bound:
    """InfoNCE of views [N, R], judged on the N/2 samples of the second half. Of the first, three fifths fit the critic
    and the others choose by how much it is scaled: views that are not Gaussian make it too sure of itself. Of few
    samples only so many components are taken that each has `EACH` of them."""
    x, y, half = x.double(), y.double(), len(x) // 2
    fit = 3 * half // 5
    critic = gaussian_critic(x[:fit], y[:fit], max(1, min(components, fit // EACH)))
    chosen = critic.scores(x[fit:half], y[fit:half])
    scale = max(SCALES, key=lambda scale: info_nce(scale * chosen).value)
    return info_nce(scale * critic.scores(x[half:], y[half:]))


def code_information(mu: Tensor, sigma: Tensor, z: Tensor) -> Bound:
    """The bound from below for Gaussian codes q(z | d_i) = N(mu_i, sigma_i^2), all [N, D], z_i drawn from the i-th."""
    mu, sigma, z = (v.double() for v in (mu, sigma, z))
    precision = sigma**-2
    # -1/2 sum_d ((z_i - mu_j) / sigma_j)^2 without a tensor [N, N, D]
    squares = z**2 @ precision.T - 2 * z @ (mu * precision).T + (mu**2 * precision).sum(1)
    return info_nce(-squares / 2 - sigma.log().sum(1))


def aggregate_divergence(mu: Tensor, sigma: Tensor) -> Bound:
    """The bound from above: E KL(q(z | d_i) || m), m Gaussian with the moments of the first half's mixture, judged on
    the second."""
    mu, sigma, half = mu.double(), sigma.double(), len(mu) // 2
    mean = mu[:half].mean(0)
    variance = (sigma[:half] ** 2 + (mu[:half] - mean) ** 2).mean(0)
    return mean_divergence(mu[half:], sigma[half:], mean, variance.sqrt())


def mean_divergence(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor) -> Bound:
    """E KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2)), entries independent, codes [N, D]."""
    mu, sigma, prior_mu, prior_sigma = (v.double() for v in (mu, sigma, prior_mu, prior_sigma))
    ratio, away = sigma / prior_sigma, (mu - prior_mu) / prior_sigma
    return _mean_bound((0.5 * (ratio**2 + away**2 - 1) - ratio.log()).sum(1))


def _mean_bound(each: Tensor) -> Bound:
    return Bound(float(each.mean()), 1.96 * float(each.std()) / math.sqrt(len(each)))
