r"""Neural processes (Garnelo et al. 2018, arXiv 1807.01622) and attentive ones (Kim et al. 2019, arXiv 1901.05761).

    q(z | S) = N(mu(s), diag sigma(s)^2),  s = mean_{j in S} l([x_j, y_j]),  sigma = 0.1 + 0.9 sigmoid(.)
    p(y_t | x_t, C, z) = N(mu_t, diag sigma_t^2),  [mu_t, s_t] = g([x_t, r_t, z]),  sigma_t = f + (1 - f) softplus(s_t)
    r_t = mean_{j in C} h([x_j, y_j]),  or attention of x_t over the context (heads > 0; attention.py), or nothing
    log p(y_T | x_T, C) >= E_{q(z | T)} [ sum_t log p(y_t | x_t, C, z) ] - KL(q(z | T) || q(z | C)) = ELBO
    loss = - ELBO / |T|,  its KL times b: `kl_weight`, reached from 0 over `kl_warmup` outer steps

Symbols: C the context (support set), T the targets, which include the context; h `encoder`, l `latent_encoder`, the map
from s to mu, sigma `posterior`, g `decoder`, queries and keys of the attention by one network `key`, all of the chosen
model's kind; lengths of r and s `representation`, of z `latent`; f `sigma_floor`, H `heads`; z samples in training
`train_samples`. q(z | C) takes the place of the prior p(z | C). With `deterministic` = false there are no h and r: all
that the decoder learns of the context is z, as in the graphical model of the first paper; its code has both paths.

A test estimates log p(y | C) of all queries y together by `test_samples` importance samples z ~ q(z | C and queries)
with weights p(y | z) q(z | C) / q(z | C and queries) (predictive.py), and divides by their number. What is predicted at
single targets, the MSE of the mean, coverage and context are of z ~ q(z | C), which has seen no query. Neither these
nor the ELBO that training records depends on b.

With b other than 1 the loss is that of an information bottleneck (Alemi et al. 2017, arXiv 1612.00410): the mean KL
bounds what z says of the targets beyond the context, I(z; T | C), from above.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms import predictive
from metarun.algorithms.contexts import Draws, Rows, check_network, check_sizes, concatenate, masked_mean
from metarun.algorithms.predictive import Gaussian, kl
from metarun.compute import linalg
from metarun.errors import require
from metarun.models.attention import Attention
from metarun.models.multi_network import MultiNetwork, multi_network
from metarun.types import Batch, Kind, Loss, Metrics, NetworkFactory, Params, PredictionKind, Task


class Summary(NamedTuple):
    """The summary of a context."""

    params: Params
    x: Tensor  # [S, d]
    h: Tensor  # [S, R]; without a deterministic path l([x, y])
    here: Tensor  # [S]
    prior: Gaussian  # q(z | C), [D]


@dataclass(frozen=True)
class NeuralProcess:
    """A latent function z, inferred from the context; a Gaussian for each target given z."""

    model: MultiNetwork
    loss: Loss
    draws: Draws
    sigma_floor: float
    latent: int
    train_samples: int
    test_samples: int
    deterministic: bool
    attends: bool

    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)
    predicts: ClassVar[PredictionKind] = "gaussians"
    head: ClassVar[bool] = True
    test_inner_steps: ClassVar[int] = 0

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    def add_noise(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        return params, self.draws.add(tasks, seed, step, first)

    def adapt(self, params: Params, support: Batch) -> Summary:
        return self._summarize(params, self.draws.rows(support))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Summary]:
        yield self.adapt(params, support)

    def predict(self, adapted: Summary, x: Tensor) -> Tensor:
        """Mean and standard deviation of the mixture over z."""
        return torch.cat(predictive.summarize_mixture(self._predict_samples(adapted, x, self.test_samples)), -1)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        support, query = (self.draws.rows(batch) for batch in task)
        targets = concatenate(support, query)

        def outer(params: Params) -> tuple[Tensor, Metrics]:
            context, posterior = self._summarize(params, support), self._infer(params, targets)
            z_LD = posterior.sample(support.eps[0].view(self.train_samples, self.latent))
            logp_LN = self._decode(context, targets.x, z_LD).log_density(targets.y)
            fit, divergence = masked_mean(logp_LN.mean(0), targets.here), kl(posterior, context.prior).sum()
            bound = fit - divergence / targets.here.sum()
            loss = -fit + support.weight * divergence / targets.here.sum()
            return loss, {"loss": loss, self.loss.metric: bound, "kl": divergence}

        return linalg.differentiate(outer, params)

    def assess(self, adapted: Summary, task: Task) -> Metrics:
        support, query = (self.draws.rows(batch) for batch in task)
        logw = self.log_weights(adapted, support, query)
        joint = predictive.log_mean_exp(logw) / len(query.x)
        of_query, of_context = (self._predict_samples(adapted, rows.x, self.test_samples) for rows in (query, support))
        return {
            "loss": -joint,
            self.loss.metric: joint,
            "elbo": logw.mean() / len(query.x),
            "joint_log_likelihood": joint,
            "pointwise_log_likelihood": predictive.pointwise_log_likelihood(of_query, query.y),
            "context_log_likelihood": predictive.pointwise_log_likelihood(of_context, support.y),
            **predictive.score_mixture(of_query, query.y),
        }

    def log_weights(self, adapted: Summary, support: Rows, query: Rows) -> Tensor:
        """log p(y | z) q(z | C) / q(z | C and queries) of samples z from the latter, [L]."""
        posterior = self._infer(adapted.params, concatenate(support, query))
        z_LD = posterior.sample(predictive.draw_normals(self.test_samples, self.latent, query.x))
        logp_LM = self._decode(adapted, query.x, z_LD).log_density(query.y)
        return logp_LM.sum(1) + adapted.prior.log_density(z_LD) - posterior.log_density(z_LD)

    def functions(self, adapted: Summary, x: Tensor, count: int) -> Tensor:
        return self._predict_samples(adapted, x, count).mu

    def encode(self, params: Params, rows: Batch) -> Tensor:
        """The mean of h, also where attention weighs it anew for each target; s where there is no h."""
        adapted = self.adapt(params, rows)
        return masked_mean(adapted.h, adapted.here)

    def latents(self, params: Params, task: Task) -> tuple[Gaussian, Gaussian]:
        """q(z | context and queries), q(z | context)."""
        support, query = (self.draws.rows(batch) for batch in task)
        return self._infer(params, concatenate(support, query)), self._infer(params, support)

    def _summarize(self, params: Params, context: Rows) -> Summary:
        h_SR = self._encode("encoder" if self.deterministic else "latent_encoder", params, context)
        return Summary(params, context.x, h_SR, context.here, self._infer(params, context))

    def _encode(self, name: str, params: Params, rows: Rows) -> Tensor:
        return self.model.run(name, params, torch.cat([rows.x, rows.y], -1))

    def _infer(self, params: Params, rows: Rows) -> Gaussian:
        """q(z | rows)."""
        l_SR = self._encode("latent_encoder", params, rows)
        mu, s = self.model.run("posterior", params, masked_mean(l_SR, rows.here)[None])[0].chunk(2, -1)
        return Gaussian(mu, 0.1 + 0.9 * s.sigmoid())

    def _predict_samples(self, adapted: Summary, x: Tensor, samples: int) -> Gaussian:
        """Predictions [L, M, d_out] for z ~ q(z | C)."""
        return self._decode(adapted, x, adapted.prior.sample(predictive.draw_normals(samples, self.latent, x)))

    def _decode(self, adapted: Summary, x: Tensor, z_LD: Tensor) -> Gaussian:
        """p(y | x, C, z) at rows [M, d], for each of the z: [L, M, d_out]."""
        fixed = torch.cat([x, self._representation(adapted, x)], -1) if self.deterministic else x
        parts = []
        for z in z_LD.chunk(predictive.CHUNKS):  # rows [x, r] with each z
            rows = torch.cat([fixed.expand(len(z), *fixed.shape), z[:, None].expand(-1, fixed.shape[0], -1)], -1)
            out = self.model.run("decoder", adapted.params, rows.flatten(0, 1))
            parts.append(out.unflatten(0, (len(z), -1)))
        mu, s = torch.cat(parts).chunk(2, -1)
        return Gaussian(mu, predictive.decoder_std(s, self.sigma_floor))

    def _representation(self, adapted: Summary, x: Tensor) -> Tensor:
        """r for each of the rows, [M, R]."""
        if not self.attends:
            return masked_mean(adapted.h, adapted.here).expand(x.shape[0], -1)
        queries, keys = (self.model.run("key", adapted.params, rows) for rows in (x, adapted.x))
        return self.model.run("attention", adapted.params, queries, keys, adapted.h, adapted.here)


def neural_process(
    network: NetworkFactory,
    input_shape: tuple[int, ...],
    outputs: int,
    loss: Loss,
    representation: int,
    latent: int,
    heads: int,
    sigma_floor: float,
    train_samples: int,
    test_samples: int,
    kl_warmup: int,
    min_shots: int,
    min_queries: int,
    kl_weight: float = 1.0,
    deterministic: bool = True,
) -> NeuralProcess:
    """Build one, with attention over the context if `heads` is not 0, and nothing but z if `deterministic` is false."""
    sizes = {"latent": latent, "train_samples": train_samples, "test_samples": test_samples}
    check_sizes(sigma_floor, representation=representation, **sizes)
    require(heads >= 0, "heads", heads, "must be at least 1, or 0 for the mean in place of attention")
    require(deterministic or not heads, "heads", heads, "must be 0 with algo.deterministic=false: it attends for r")
    (inputs,) = input_shape
    pair = (inputs + outputs,)
    parts = {"encoder": check_network(network(pair, representation))} if deterministic else {}
    parts |= {
        "latent_encoder": check_network(network(pair, representation)),
        "posterior": network((representation,), 2 * latent),
    }
    if heads:
        parts |= {"key": network((inputs,), representation), "attention": Attention(representation, heads)}
    parts["decoder"] = network((inputs + (representation if deterministic else 0) + latent,), 2 * outputs)
    noise = train_samples * latent
    drawn = Draws(inputs, min_shots, min_queries, width=noise, warmup=kl_warmup, weight=kl_weight)
    samples = train_samples, test_samples
    return NeuralProcess(multi_network(**parts), loss, drawn, sigma_floor, latent, *samples, deterministic, heads > 0)
