"""The vocabulary every other file shares: data that flows, and the three protocols it flows through.

Dimension letters, used in every docstring and as suffixes of local names:

    T  tasks in a meta-batch        N  ways (classes of a task)      K  shots (support examples per class)
    Q  queries per class            S  support rows = N * K          M  query rows = N * Q
    D  features
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

Params = dict[str, Tensor]
"""Named tensors: meta-parameters, fast weights or a gradient. Never `requires_grad`."""

Metrics = dict[str, Tensor]
"""Named scalars of one task; `vmap` turns each into a tensor [T]."""

Adapted = Any
"""What adaptation leaves behind: fast weights, prototypes, a posterior. Any tree of tensors."""

Objective = Callable[[Params, int], Tensor]
"""phi, step number -> a scalar; the number lets an objective use another mini-batch at each step."""

Kind = Literal["classification", "regression", "control"]
Split = Literal["train", "val", "test"]
Predicted = Literal["values", "gaussians"]
"""What a learner's predictions for a regression are; `ClassVar predicts`, values where it does not say."""


class Batch(NamedTuple):
    x: Tensor  # [S, ...]
    y: Tensor  # [S] labels, or [S, d_out] targets


class Task(NamedTuple):
    support: Batch
    query: Batch


REG, RATES, MOMENTS, CARRIED = "reg.", "rates.", "moments.", "carried."
OWN = (REG, RATES, MOMENTS, CARRIED)
"""How the names of the meta-parameters begin that are no weights of the network, but a regularizer's, learned step
sizes, an inner Adam's second moments, or constants that a learner carries along: no inner loop moves them."""

Rates = float | Tensor | Params
"""The step size of a rule, one for all weights or one for each."""


class Rule(NamedTuple):
    """How a gradient becomes a step: pure functions of the gradient and a carried state."""

    init: Callable[[Params, Params], Any]  # what is adapted, all meta-parameters -> the first state
    step: Callable[[Params, Any], tuple[Params, Any]]
    lr: float = 0.0  # infinite where there are but rates
    rates: Callable[[Any, Params], Rates] | None = None  # of the step that led to a state, if not lr for all
    finish: Callable[[Params, Rates, float], Params] | None = None  # a proximal step that follows each step
    moves: tuple[str, ...] | None = None  # how the names begin of what is adapted; None: everything


class EpisodeSpec(NamedTuple):
    """The size of an episode. Regression data sets have no classes and read `shots`, `queries` only."""

    ways: int
    shots: int
    queries: int

    def __str__(self) -> str:
        return f"{self.ways}-way {self.shots}-shot {self.queries}-query"


class Loss(Protocol):
    """What a data set is scored by."""

    name: ClassVar[str]  # of the loss
    metric: ClassVar[str]  # of the figure that is reported
    higher_is_better: ClassVar[bool]
    best: ClassVar[float]  # the figure that errors count from: 1 for an accuracy, 0 for what has no upper end
    signed: ClassVar[bool]  # whether the loss may be below 0: then differences are compared, not quotients

    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Mean over rows, a scalar."""

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The reported figure, mean over rows, a scalar."""


class Model(Protocol):
    """A network as a frozen value; its weights are passed in. Those of a head are named `head.*`."""

    @property
    def features(self) -> int:
        """D, the length of the vector before the head."""

    def init(self, seed: int) -> Params: ...

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        """[B, ...] -> [B, outputs]; `stats` replaces the normalisation statistics of the batch at hand."""

    def activations(self, params: Params, x: Tensor, stats: Any = None) -> dict[str, Tensor]:
        """What each layer before the head puts out, by the layer's name, first to last: [B, D of the layer]."""

    def query_stats(self, params: Params, support_x: Tensor) -> Any:
        """The statistics that queries are to be normalised with, or None for those of their own batch."""

    def calibrated(self, params: Params, x: Tensor) -> Model:
        """The model to evaluate with: the same one, or one whose statistics are fixed to those of `x`."""


MakeNetwork = Callable[[tuple[int, ...], int], Model]
"""Shape of an input, outputs -> a network of the kind that the settings choose, for learners made of several."""


class Algorithm(Protocol):
    """A meta-learning algorithm: a frozen value with pure functions of ONE task; `vmap` adds the T axis."""

    kinds: ClassVar[tuple[Kind, ...]]  # of data it can learn from
    head: ClassVar[bool]  # whether the model ends in a layer with one output per class or target

    @property
    def model(self) -> Model: ...

    @property
    def loss(self) -> Loss: ...

    @property
    def test_inner_steps(self) -> int:
        """The adaptation step whose figure is the result; 0 for a learner without steps."""

    def init(self, seed: int) -> Params:
        """The meta-parameters theta."""

    def adapt(self, params: Params, support: Batch) -> Adapted:
        """theta, support set -> task-specific state, as during training."""

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Adapted]:
        """The state after 0, 1, ... `steps` adaptation steps; a learner without steps yields one state."""

    def predict(self, adapted: Adapted, x: Tensor) -> Tensor:
        """[M, ...] -> logits [M, N], values [M, d_out], or means and standard deviations side by side [M, 2 d_out]."""

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        """The meta-gradient of one task, and scalars worth logging (`loss` always)."""


@runtime_checkable
class GradientLearner(Algorithm, Protocol):
    """An algorithm that adapts by descending an objective; what the measures of the inner loop need to know of it."""

    @property
    def inner_lr(self) -> float: ...

    @property
    def inner_steps(self) -> int: ...

    @property
    def regularization(self) -> Any:
        """The penalties of the inner and of the outer objective (regularization.py)."""

    @property
    def sees_adaptation(self) -> bool:
        """Whether the meta-gradient holds how phi depends on all of the inner objective, and not only on its start."""

    @property
    def inner_rule(self) -> Rule:
        """How a gradient of the objective becomes a step."""

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        """What adaptation from theta = `params` descends, all penalties included but those taken as proximal steps."""


@runtime_checkable
class AssessingLearner(Algorithm, Protocol):
    """One that scores itself, since `predict` and a loss of it do not say what a test asks for."""

    def assess(self, adapted: Adapted, task: Task) -> Metrics:
        """`loss` and the loss's metric on the queries, by the best estimate that there is, and further figures."""


@runtime_checkable
class DistributionLearner(AssessingLearner, Protocol):
    """One that predicts distributions, of which a test can say more than `predict` and a loss of it."""

    def functions(self, adapted: Adapted, x: Tensor, count: int) -> Tensor:
        """The means of y at places [G, ...] for so many draws of what is latent [count, G, d_out]; for a learner
        without latent variables, all the same."""


@runtime_checkable
class ContextLearner(Algorithm, Protocol):
    """One that makes a vector of a context set."""

    def encoded(self, params: Params, rows: Batch) -> Tensor:
        """[R]."""


@runtime_checkable
class LatentLearner(Algorithm, Protocol):
    """One that draws what is latent of a task, or of a target."""

    def latents(self, params: Params, task: Task) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Mean and standard deviation [D] of the posterior, which has seen targets, and of its prior."""


@runtime_checkable
class StagedLearner(Algorithm, Protocol):
    """One whose meta-gradient changes in the course of training."""

    def stage(self, step: int) -> Hashable:
        """What holds at an outer step; few different values, for each may be compiled."""

    def at(self, stage: Any) -> Algorithm:
        """The learner of a stage."""


@runtime_checkable
class ProximalLearner(GradientLearner, Protocol):
    """One whose meta-gradient assumes that adaptation reached the minimiser of a proximal objective."""

    @property
    def prox(self) -> float:
        """lambda of (lambda/2) |phi - theta|^2."""


class Dataset(Protocol):
    """Episodes as a pure function of (split, seed, step, task index)."""

    @property
    def kind(self) -> Kind: ...

    def input_shape(self) -> tuple[int, ...]: ...

    def outputs(self, ways: int) -> int:
        """How many numbers a model with a head predicts for one input."""

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Raise `SettingError` when the split cannot supply such an episode."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        """The given tasks of the given step, each tensor with a leading T axis."""

    def reference_inputs(self, count: int) -> Tensor:
        """A fixed sample of training inputs [count, ...], for population statistics."""

    def facts(self) -> dict[str, Any]:
        """What belongs beside a number: the split's name and hash, and whatever else was decided."""
