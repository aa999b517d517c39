"""Bounds of mutual information, where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from metarun.diagnostics.information import (
    aggregate_divergence,
    code_information,
    gaussian_critic,
    info_nce,
    mean_divergence,
    views_information,
)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(count: int, noises: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """x = t + s e, y = t + s e': I(x; y) = -(1/2) sum log(1 - (1 + s^2)^-2)."""
    t, s = normals(count, len(noises)), torch.tensor(noises, dtype=torch.float64)
    return tuple(t + s * normals(count, len(noises), seed=i) for i in (1, 2))  # type: ignore[return-value]


def known(noises: tuple[float, ...]) -> float:
    return -0.5 * sum(math.log(1 - (1 + s**2) ** -2) for s in noises)


def test_the_gaussian_critic_is_the_log_ratio_of_densities() -> None:
    """With moments that are exactly those of the samples: f = log N([x, y]) - log N(x) - log N(y)."""
    x, y = views(50, (0.3, 1.0))
    x, y = torch.cat([x, y]), torch.cat([y, x])  # exchangeable as samples too
    centre = x.mean(0)
    joint = torch.cat([x - centre, y - centre], 1)
    both = MultivariateNormal(torch.zeros(4).double(), joint.T @ joint / len(x))
    one = MultivariateNormal(torch.zeros(2).double(), (x - centre).T @ (x - centre) / len(x))
    found = gaussian_critic(x, y, 2).scores(x[:5], y[:5])
    for i in range(5):
        for j in range(5):
            pair = torch.cat([x[i] - centre, y[j] - centre])
            expected = both.log_prob(pair) - one.log_prob(pair[:2]) - one.log_prob(pair[2:])
            torch.testing.assert_close(found[i, j], expected)


@pytest.mark.parametrize("noises", [(0.5, 0.5), (0.3, 2.0, 2.0)])
def test_views_of_linear_gaussian_sources_share_what_is_known(noises: tuple[float, ...]) -> None:
    """1.02 and 1.0 nats, from 2000 judged samples; also where 20 numbers hold them linearly."""
    x, y = views(4000, noises)
    wide = normals(len(noises), 20, seed=9)
    for found in (views_information(x, y, 5), views_information(x @ wide + 3, y @ wide + 3, 8)):
        assert found.value == pytest.approx(known(noises), abs=0.05)
        assert found.value < known(noises) + found.half
        assert 0 < found.half < 0.1


def test_independent_views_share_nothing_and_equal_ones_the_largest_bound() -> None:
    x, y = normals(2000, 4), normals(2000, 4, seed=1)
    assert abs(views_information(x, y, 4).value) < 0.03
    assert views_information(x, x, 4).value == pytest.approx(math.log(1000), abs=1e-3)
    assert views_information(x, x, 4).value <= math.log(1000) + 1e-12
    constant = torch.ones(100, 4, dtype=torch.float64)
    assert views_information(constant, constant, 4).value == 0


def test_a_critic_that_is_too_sure_is_scaled_down() -> None:
    """Views that share a scale and no sign: no correlation, but the squares tell each other's size. The Gaussian critic
    finds nothing there, and does not say less than nothing."""
    size = normals(400, 4).exp()
    x, y = size * normals(400, 4, seed=1) ** 3, size * normals(400, 4, seed=2) ** 3
    critic = gaussian_critic(x[:120], y[:120], 4)
    assert info_nce(critic.scores(x[200:], y[200:])).value < -0.05
    assert views_information(x, y, 4).value > -0.01


def test_no_scores_say_more_than_the_logarithm_of_their_number() -> None:
    for scale in (1.0, 100.0):
        assert info_nce(scale * normals(30, 30)).value <= math.log(30) + 1e-12
    assert info_nce(1e4 * torch.eye(30, dtype=torch.float64)).value == pytest.approx(math.log(30))


def test_a_linear_gaussian_code_lies_between_its_bounds() -> None:
    """z ~ N(a d, s^2), d ~ N(0, I_2): I = sum (1/2) log(1 + a^2 / s^2) = 1.26 nats. The aggregate is Gaussian, so that
    the bound from above is tight too."""
    s = torch.tensor([0.5, 1.0]).double()
    mu, sigma = normals(4000, 2), s.expand(4000, 2)
    expected = float(0.5 * (1 + s**-2).log().sum())
    below, above = code_information(mu, sigma, mu + sigma * normals(4000, 2, seed=3)), aggregate_divergence(mu, sigma)
    for bound in (below, above):
        assert bound.value == pytest.approx(expected, abs=0.06)
    few = mu[:20] + 100 * torch.arange(20)[:, None]
    assert code_information(few, sigma[:20], few).value == pytest.approx(math.log(20))


def test_codes_of_two_kinds_hold_one_bit_and_a_gaussian_aggregate_says_more() -> None:
    """means +-3, sigma 0.3: I = log 2 but for a tail; E KL(q || N(0, 9.09)) = (1/2) log(9.09 / 0.09)."""
    mu = 3 * normals(4000, 1).sign()
    sigma = torch.full_like(mu, 0.3)
    assert code_information(mu, sigma, mu + sigma * normals(4000, 1, seed=1)).value == pytest.approx(
        math.log(2), abs=1e-3
    )
    assert aggregate_divergence(mu, sigma).value == pytest.approx(0.5 * math.log(9.09 / 0.09), abs=0.01)


def test_divergences_are_torchs() -> None:
    mu, prior = normals(50, 3), normals(50, 3, seed=1)
    sigma, wide = normals(50, 3, seed=2).exp(), normals(50, 3, seed=3).exp()
    expected = kl_divergence(Normal(mu, sigma), Normal(prior, wide)).sum(1)
    found = mean_divergence(mu, sigma, prior, wide)
    assert found.value == pytest.approx(float(expected.mean()))
    assert found.half == pytest.approx(1.96 * float(expected.std()) / 50**0.5)
