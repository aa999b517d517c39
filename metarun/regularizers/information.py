r"""Information in what the inner loop leaves alone, against memorised tasks (MR-MAML, Yin et al. 2020).

Where inputs tell the task, a network can solve the training tasks without their support sets, and fails on new ones.
Noise limits what it can take from the inputs, or hold in the weights that read them. Symbols: s `prior_std`. Source:
arXiv 1912.03820.

    weights       theta_e ~ q = N(m, exp(l)^2) for each weight of the linear maps of the encoder
                  Omega = sum_j KL(q_j || N(0, s^2))
    activations   z = mu(x) + sigma(x) eps, the output of the encoder's last block
                  Omega = mean over the query rows x of all tasks of mean_d KL(N(mu_d(x), sigma_d(x)^2) || N(0, s^2))
    KL(N(m, v^2) || N(0, s^2)) = log(s / v) + (v^2 + m^2) / (2 s^2) - 1/2;   d/dm = m / s^2,   d/dv = v / s^2 - 1 / v

`reduce` sums or averages over weights (j) or dimensions (d); null takes the sum for weights and the mean for
activations, as the released code does. The outer loss is taken with noise, drawn at each outer step: for weights once
for all tasks, as in the paper; for activations for each row, of the support set and of the query set. Evaluation is at
the means, where the released code draws noise too. Vectors (shifts, gains) of the encoder have no noise and no penalty.

The encoder must be what the inner loop leaves alone: `algo.adapted` names the others. Losses are means over rows, so a
weight is in units of the loss of one row. A bottleneck followed by a ReLU has mu >= 0; `model.linear_blocks` takes that
ReLU away, as in the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import vmap

from metarun.algorithms.inner_loop import is_adapted
from metarun.algorithms.objective import NoisyModel
from metarun.errors import SettingError, require
from metarun.models.network import Network
from metarun.models.noise import LEAST, ActivationNoise, Bottleneck, NoisyNetwork, WeightNoise
from metarun.regularizers.selection import is_linear_map, select_tensors
from metarun.types import Algorithm, AlgorithmOptions, GradientLearner, Model, Params, Task, optional

FORMS = ("weights", "activations")
REDUCTIONS = ("sum", "mean")
DEFAULT_STD = {"weights": 0.01, "activations": 0.7}
DEFAULT_REDUCTION = {"weights": "sum", "activations": "mean"}


@dataclass(frozen=True)
class Information:
    encoder: tuple[str, ...]  # name prefixes of its tensors
    form: str = "weights"
    prior_std: float = 1.0
    std: float | None = None  # initial; null: 0.01 of weights, 0.7 of activations
    reduce: str | None = None

    allowed_where: ClassVar[tuple[str, ...]] = ("outer",)
    compares_tasks: ClassVar[bool] = False  # one task a step is enough

    def __post_init__(self) -> None:
        require(len(self.encoder) > 0, "encoder", [], "must name what the inner loop does not adapt, as [block0]")
        require(self.form in FORMS, "form", self.form, "choices: " + ", ".join(FORMS))
        require(0 < self.prior_std < float("inf"), "prior_std", self.prior_std, "must be above 0 and finite")
        sound = self.std is None or LEAST < self.std < float("inf")
        require(sound, "std", self.std, f"must be above {LEAST} and finite, or null for the form's own")
        known = self.reduce in (None, *REDUCTIONS)
        require(known, "reduce", self.reduce, f"choices: {', '.join(REDUCTIONS)}, or null for the form's own")

    def wrap(self, model: Model, prefix: str, input_shape: tuple[int, ...]) -> Model:
        """The network with noise; the names of the added parameters begin with `prefix`."""
        alone = not isinstance(model, NoisyModel)
        require(alone, "form", self.form, "the network has noise already: one such penalty at a time")
        weights = model.init(0)
        names = tuple(select_tensors(weights, self.encoder))
        require(len(names) > 0, "encoder", list(self.encoder), f"names none of {', '.join(weights)}")
        std = DEFAULT_STD[self.form] if self.std is None else self.std
        if self.form == "weights":
            noisy = tuple(n for n in names if is_linear_map(weights[n]))
            require(len(noisy) > 0, "encoder", list(self.encoder), "names vectors only; noise is in linear maps")
            return NoisyNetwork(model, WeightNoise(noisy, prefix, std))
        if not isinstance(model, Network):
            raise SettingError("form", self.form, "needs a network of blocks, as model=mlp; or choose weights")
        last = self._last_block(model, names)
        bottleneck = Bottleneck(last, input_shape, prefix)
        outputs = model.activations(weights, torch.zeros(2, *input_shape))  # a batch statistic needs two rows
        noise = ActivationNoise(bottleneck, outputs[f"block{last}"].shape[1], std)
        return NoisyNetwork(replace(model, bottleneck=bottleneck), noise)

    def across(self, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
        """Omega, at theta."""
        assert isinstance(learner.model, NoisyNetwork)
        network, noise = learner.model.model, learner.model.noise
        if isinstance(noise, WeightNoise):
            gaussians = [gaussian_kl(*gaussian, self.prior_std).flatten() for gaussian in noise.gaussians(params)]
            kl = torch.cat(gaussians)
        else:
            assert isinstance(network, Network)

            def gaussian(support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
                return network.gaussian(params, query_x, network.query_stats(params, support_x))

            mu_TMD, sigma_TMD = vmap(gaussian)(tasks.support.x, tasks.query.x)
            kl = gaussian_kl(mu_TMD, sigma_TMD.log(), self.prior_std).mean((0, 1))
        reduction = self.reduce or DEFAULT_REDUCTION[self.form]
        return kl.sum() if reduction == "sum" else kl.mean()

    def objection(self, learner: Algorithm) -> str | None:
        """Why the algorithm cannot have this penalty, in one line; None if it can."""
        if not isinstance(learner, GradientLearner):
            return None
        weights = learner.model.init(0)
        moving = [n for n in select_tensors(weights, self.encoder) if is_adapted(n, learner.inner_rule)]
        if not moving:
            return None
        rest = [n for n in select_tensors(weights, None) if not n.startswith(self.encoder)]
        others = ",".join(dict.fromkeys(n.partition(".")[0] for n in rest))
        way = f"algo.adapted=[{others}]" if others else "a shorter encoder"
        way = f"algo=maml {way}" if optional(learner, AlgorithmOptions, "adapted") == () else way
        return f"the inner loop adapts {moving[0]} of the encoder, which must stay as it is; choose {way}"

    def _last_block(self, model: Network, names: tuple[str, ...]) -> int:
        """The number of the encoder's last block; the encoder must be the first blocks in order."""
        encoded = [i for i in range(len(model.shapes)) if f"block{i}.weight" in names]
        whole = {n for n in model.init(0) if n.partition(".")[0] in {f"block{i}" for i in encoded}}
        fits = bool(encoded) and encoded == list(range(len(encoded))) and set(names) == whole
        require(fits, "encoder", list(self.encoder), "must be the first blocks in order, as [block0,block1]")
        return encoded[-1]


def gaussian_kl(mean: Tensor, log_std: Tensor, prior_std: float) -> Tensor:
    """KL(N(mean, exp(log_std)^2) || N(0, prior_std^2)), number by number."""
    scaled = ((2 * log_std).exp() + mean.square()) / (2 * prior_std**2)
    return math.log(prior_std) - log_std + scaled - 0.5
