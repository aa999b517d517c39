r"""Conditional variational autoencoders (Sohn, Lee, Yan 2015, NeurIPS; of VAEs Kingma, Welling 2014, arXiv 1312.6114).

    c = (x, r),  r = mean_{j in C} h([x_j, y_j]);   p(z | c) = N(mu_p, diag sigma_p^2),  q(z | c, y) likewise
    p(y | c, z) = N(mu, diag sigma^2),  [mu, s] = g([c, z]),  sigma = f + (1 - f) softplus(s)
    L_cvae = E_{q(z | c, y)} [log p(y | c, z)] - b KL(q(z | c, y) || p(z | c))
    L_gsnn = E_{p(z | c)} [log p(y | c, z)]
    loss = - mean over the targets of L_cvae, L_gsnn or a L_cvae + (1 - a) L_gsnn        (objective cvae, gsnn, hybrid)

Each target has a z of its own, so that a target's distribution given the context need not be Gaussian. A neural process
has one z for all targets of a task. One sample of z for each expectation.

Symbols: C the context (support set), h `encoder`, p `prior`, q `posterior`, g `decoder`, networks of the model's kind;
length of r `representation`, of z `latent`; f `sigma_floor`, a `alpha`; b rises from 0 to `kl_weight` over
`kl_warmup` outer steps (1: the evidence bound; else an information bottleneck, Alemi et al. 2017, arXiv 1612.00410).
Targets of a training task are its context and its query rows. A test estimates log p(y | c) of each query by
`test_samples` importance samples from q (from p for objective=gsnn, which trains no q; predictive.py).

kl, kl_dimension/zI: KL(q || p) of a target, and of entry I of z; active_units: entries with more than 0.01 nats. None
is active where the posterior has collapsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from metarun.algorithms import predictive
from metarun.algorithms.contexts import Draws, Summary, check_network, check_sizes, concatenate, masked_mean, summarize
from metarun.algorithms.predictive import Gaussian, kl
from metarun.compute import linalg
from metarun.errors import require
from metarun.models.multi_network import MultiNetwork, multi_network
from metarun.types import Batch, Kind, Loss, Metrics, NetworkFactory, Params, PredictionKind, Task

OBJECTIVES = ("cvae", "gsnn", "hybrid")
ACTIVE = 0.01  # nats
LEAST = 1e-3  # of the standard deviations of z


@dataclass(frozen=True)
class CVAE:
    """A latent variable for each target, with a learned conditional prior."""

    model: MultiNetwork
    loss: Loss
    draws: Draws
    sigma_floor: float
    latent: int
    objective: str
    alpha: float
    test_samples: int

    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)
    predicts: ClassVar[PredictionKind] = "gaussians"
    head: ClassVar[bool] = True
    test_inner_steps: ClassVar[int] = 0

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    def add_noise(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        return params, self.draws.add(tasks, seed, step, first)

    def adapt(self, params: Params, support: Batch) -> Summary:
        return summarize(self.model, params, self.draws.rows(support))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Summary]:
        yield self.adapt(params, support)

    def predict(self, adapted: Summary, x: Tensor) -> Tensor:
        """Mean and standard deviation of the mixture over z."""
        return torch.cat(predictive.summarize_mixture(self._predict_samples(adapted, x, self.test_samples)), -1)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        support, query = (self.draws.rows(batch) for batch in task)
        targets = concatenate(support, query)

        def outer(params: Params) -> tuple[Tensor, Metrics]:
            adapted = summarize(self.model, params, support)
            prior, posterior = self._prior(adapted, targets.x), self._posterior(adapted, targets.x, targets.y)
            eps_q, eps_p = targets.eps.chunk(2, -1)
            fit, guess = (
                masked_mean(self._decode(adapted, targets.x, z).log_density(targets.y), targets.here)
                for z in (posterior.sample(eps_q), prior.sample(eps_p))
            )
            kl_D = masked_mean(kl(posterior, prior), targets.here)
            share = {"cvae": 1.0, "gsnn": 0.0, "hybrid": self.alpha}[self.objective]
            loss = -share * (fit - support.weight * kl_D.sum()) - (1 - share) * guess
            bound = share * (fit - kl_D.sum()) + (1 - share) * guess
            metrics = {"loss": loss, self.loss.metric: bound, "kl": kl_D.sum()}
            metrics["active_units"] = (kl_D > ACTIVE).to(kl_D).sum()
            return loss, metrics | {f"kl_dimension/z{i}": v for i, v in enumerate(kl_D)}

        return linalg.differentiate(outer, params)

    def assess(self, adapted: Summary, task: Task) -> Metrics:
        support, query = task
        logw_LM = self.log_weights(adapted, query.x, query.y)
        log_likelihood = predictive.log_mean_exp(logw_LM).mean()
        samples = self._predict_samples(adapted, query.x, self.test_samples)
        return {
            "loss": -log_likelihood,
            self.loss.metric: log_likelihood,
            "pointwise_log_likelihood": log_likelihood,
            "elbo": logw_LM.mean(),
            "context_log_likelihood": predictive.log_mean_exp(self.log_weights(adapted, support.x, support.y)).mean(),
            "prior_sampled_log_likelihood": predictive.pointwise_log_likelihood(samples, query.y),
            **predictive.score_mixture(samples, query.y),
        }

    def log_weights(self, adapted: Summary, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | c, z) p(z | c) / q(z) of samples z for each target [L, M]; q is the posterior if it is trained."""
        prior = self._prior(adapted, x)
        q = prior if self.objective == "gsnn" else self._posterior(adapted, x, y)
        z_LMD = q.sample(predictive.draw_normals(self.test_samples, self.latent, x)[:, None])
        logp_LM = self._decode_samples(adapted, x, z_LMD).log_density(y)
        return logp_LM + prior.log_density(z_LMD) - q.log_density(z_LMD)

    def functions(self, adapted: Summary, x: Tensor, count: int) -> Tensor:
        """With the same noise at all inputs."""
        return self._predict_samples(adapted, x, count).mu

    def encode(self, params: Params, rows: Batch) -> Tensor:
        return self.adapt(params, rows).r

    def latents(self, params: Params, task: Task) -> tuple[Gaussian, Gaussian]:
        """The latents of the first query; an objective that trains no q draws from the prior."""
        adapted, (x, y) = self.adapt(params, task.support), (v[:1] for v in task.query)
        prior = self._prior(adapted, x)
        q = prior if self.objective == "gsnn" else self._posterior(adapted, x, y)
        return Gaussian(*(v[0] for v in q)), Gaussian(*(v[0] for v in prior))

    def _prior(self, adapted: Summary, x: Tensor) -> Gaussian:
        return self._latent(adapted, "prior", x)

    def _posterior(self, adapted: Summary, x: Tensor, y: Tensor) -> Gaussian:
        return self._latent(adapted, "posterior", torch.cat([x, y], -1))

    def _latent(self, adapted: Summary, name: str, rows: Tensor) -> Gaussian:
        given = torch.cat([rows, adapted.r.expand(rows.shape[0], -1)], -1)
        mu, s = self.model.run(name, adapted.params, given).chunk(2, -1)
        return Gaussian(mu, LEAST + softplus(s))

    def _predict_samples(self, adapted: Summary, x: Tensor, samples: int) -> Gaussian:
        """Predictions [L, M, d_out] for z ~ p(z | c)."""
        eps_LD = predictive.draw_normals(samples, self.latent, x)
        return self._decode_samples(adapted, x, self._prior(adapted, x).sample(eps_LD[:, None]))

    def _decode_samples(self, adapted: Summary, x: Tensor, z_LMD: Tensor) -> Gaussian:
        """p(y | c, z) for several z at each row, [L, M, d_out]."""
        parts = []
        for z in z_LMD.chunk(predictive.CHUNKS):
            rows = x.expand(len(z), *x.shape).flatten(0, 1)
            parts.append([v.unflatten(0, (len(z), -1)) for v in self._decode(adapted, rows, z.flatten(0, 1))])
        return Gaussian(*(torch.cat(v) for v in zip(*parts, strict=True)))

    def _decode(self, adapted: Summary, x: Tensor, z: Tensor) -> Gaussian:
        """p(y | c, z) of rows [N, d] with a z for each, [N, D]."""
        rows = torch.cat([x, adapted.r.expand(x.shape[0], -1), z], -1)
        mu, s = self.model.run("decoder", adapted.params, rows).chunk(2, -1)
        return Gaussian(mu, predictive.decoder_std(s, self.sigma_floor))


def cvae(
    network: NetworkFactory,
    input_shape: tuple[int, ...],
    outputs: int,
    loss: Loss,
    representation: int,
    latent: int,
    objective: str,
    alpha: float,
    sigma_floor: float,
    test_samples: int,
    kl_warmup: int,
    min_shots: int,
    min_queries: int,
    kl_weight: float = 1.0,
) -> CVAE:
    """For inputs of one axis and `outputs` targets."""
    check_sizes(sigma_floor, representation=representation, latent=latent, test_samples=test_samples)
    require(objective in OBJECTIVES, "objective", objective, "choices: " + ", ".join(OBJECTIVES))
    require(0 <= alpha <= 1, "alpha", alpha, "must be from 0 to 1 (the share of L_cvae in objective=hybrid)")
    (inputs,) = input_shape
    given = inputs + representation
    model = multi_network(
        encoder=check_network(network((inputs + outputs,), representation)),
        prior=network((given,), 2 * latent),
        posterior=network((given + outputs,), 2 * latent),
        decoder=network((given + latent,), 2 * outputs),
    )
    drawn = Draws(inputs, min_shots, min_queries, 2 * latent, True, kl_warmup, kl_weight)
    return CVAE(model, loss, drawn, sigma_floor, latent, objective, alpha, test_samples)
