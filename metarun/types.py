"""The vocabulary every other file shares: the data that flows, and the protocols that components implement.

A component of your own implements one protocol: `Algorithm`, `Dataset`, `Model`, `Loss`, or a penalty
(algorithms/penalty_protocols.py). Richer ones (`GradientLearner`, `StatefulLearner`, ...) open more of metarun to it.
The ...Options at the end declare what a component may leave out, and what is assumed without it.

Dimension letters, used in every docstring and as suffixes of local names:

    T  tasks in a meta-batch        N  ways (classes of a task)      K  shots (support examples per class)
    Q  queries per class            S  support rows = N * K          M  query rows = N * Q
    D  features
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

Params = dict[str, Tensor]
"""Named tensors: meta-parameters, fast weights or a gradient. Never `requires_grad`."""

Metrics = dict[str, Tensor]
"""Named scalars of one task; `vmap` turns each into a tensor [T]."""

Adapted = Any
"""What adaptation leaves behind: fast weights, prototypes, a posterior. Any tree of tensors."""

Objective = Callable[[Params, int], Tensor]  # phi, step number (as of a mini-batch) -> a scalar
Kind = Literal["classification", "regression", "control"]
Split = Literal["train", "val", "test"]
PredictionKind = Literal["values", "gaussians"]
"""What a learner predicts for a regression: numbers, or means and standard deviations side by side."""


class Batch(NamedTuple):
    x: Tensor  # [S, ...]
    y: Tensor  # [S] labels, or [S, d_out] targets


class Task(NamedTuple):
    support: Batch
    query: Batch


HEAD = "head."
"""Name prefix of the weights of a network's head."""

REG, RATES, MOMENTS, CARRIED, LEARNED = "reg.", "rates.", "moments.", "carried.", "learned."
NOT_WEIGHTS = (REG, RATES, MOMENTS, CARRIED, LEARNED)
"""Name prefixes of meta-parameters that are no weights: a regularizer's, learned step sizes, an inner Adam's moments,
constants from a learner's state, an algorithm's own (`learned.NAME`). Inner loops, decay and penalties skip them."""

Rates = float | Tensor | Params  # the step size of a rule, one for all weights or one for each


class UpdateRule(NamedTuple):
    """How a gradient becomes an inner step: pure functions of the gradient and the rule's state."""

    init: Callable[[Params, Params], Any]  # adapted parameters, all meta-parameters -> the first state
    step: Callable[[Params, Any], tuple[Params, Any]]
    lr: float = 0.0  # inf if only per-parameter rates exist
    rates: Callable[[Any, Params], Rates] | None = None  # per-parameter rates of the step that led to a state
    proximal_step: Callable[[Params, Rates, float], Params] | None = None  # follows each step
    follow: Callable[[Any, Params], Any] | None = None  # state, the whole change of phi -> the state that counts it in
    adapted: tuple[str, ...] | None = None  # name prefixes of the adapted parameters; None: all of them
    fixed: bool = True  # all steps have the same rates, so that moves shrink if and only if the steps contract


class EpisodeSpec(NamedTuple):
    """The size of an episode. Regression data sets have no classes and read `shots`, `queries` only."""

    ways: int
    shots: int
    queries: int

    def __str__(self) -> str:
        return f"{self.ways}-way {self.shots}-shot {self.queries}-query"


class Loss(Protocol):
    """A loss, and the metric that is reported beside it."""

    @property
    def name(self) -> str: ...

    @property
    def metric(self) -> str:
        """The name of the reported metric."""

    @property
    def higher_is_better(self) -> bool: ...

    @property
    def best(self) -> float:
        """error = best - metric: 1 for an accuracy, 0 for a metric without an upper bound."""

    @property
    def signed(self) -> bool:
        """Whether the loss may be below 0: losses are then compared by differences, not by ratios."""

    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Mean over rows, a scalar."""

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The reported metric, mean over rows, a scalar."""


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

    def calibrate(self, params: Params, x: Tensor) -> Model:
        """The model to evaluate with: the same one, or one whose statistics are fixed to those of `x`."""


NetworkFactory = Callable[[tuple[int, ...], int], Model]
"""Shape of an input, outputs -> a network of the kind that `model=` chooses, for learners made of several networks."""


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
        """The adaptation step whose metric is the result; 0 for a learner without steps."""

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
    """An algorithm that adapts by gradient descent; the measures of the inner loop need these members."""

    @property
    def inner_lr(self) -> float: ...

    @property
    def inner_steps(self) -> int: ...

    @property
    def regularization(self) -> Any:
        """The penalties of the inner and of the outer objective (algorithms/objective.py)."""

    @property
    def sees_adaptation(self) -> bool:
        """Whether the meta-gradient differentiates phi by the whole inner objective, and not only by its start."""

    @property
    def inner_rule(self) -> UpdateRule:
        """How a gradient of the objective becomes a step."""

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        """The objective of adaptation from theta = `params`, with all penalties but those taken as proximal steps."""


@runtime_checkable
class AssessingLearner(Algorithm, Protocol):
    """A learner that scores itself, where a loss of `predict` would not measure the right thing."""

    def assess(self, adapted: Adapted, task: Task) -> Metrics:
        """`loss` and the loss's metric on the queries, by the best available estimate, and further metrics."""


@runtime_checkable
class DistributionLearner(AssessingLearner, Protocol):
    """A learner that predicts distributions."""

    def functions(self, adapted: Adapted, x: Tensor, count: int) -> Tensor:
        """The means of y at inputs [G, ...] for `count` draws of the latent variables: [count, G, d_out]. Without
        latent variables all draws are equal."""


@runtime_checkable
class ContextLearner(Algorithm, Protocol):
    """A learner that encodes a context set as one vector."""

    def encode(self, params: Params, rows: Batch) -> Tensor:
        """[R]."""


@runtime_checkable
class LatentLearner(Algorithm, Protocol):
    """A learner with latent variables, of a task or of a target."""

    def latents(self, params: Params, task: Task) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Mean and standard deviation [D] of the posterior, given the targets, and of its prior."""


@runtime_checkable
class StagedLearner(Algorithm, Protocol):
    """A learner whose meta-gradient changes in the course of training."""

    def stage(self, step: int) -> Hashable:
        """The stage of an outer step. Few different values: each may be compiled."""

    def at(self, stage: Any) -> Algorithm:
        """The learner of a stage."""


@runtime_checkable
class ProximalLearner(GradientLearner, Protocol):
    """A learner whose meta-gradient assumes that adaptation reached the minimiser of a proximal objective."""

    @property
    def prox(self) -> float:
        """lambda of (lambda/2) |phi - theta|^2."""


LearnerState = dict[str, Tensor]
"""What a learner keeps between outer steps beside its meta-parameters, as replay buffers; empty for most."""


@runtime_checkable
class StatefulLearner(Algorithm, Protocol):
    """A learner with state of its own between outer steps, which the trainer keeps and checkpoints.

    An outer step is  state, theta', tasks = before_step(...);  the mean of meta_grad(theta', task) over the tasks;  the
    optimizer;  state = after_step(...). All of them are pure: their arguments stay unchanged.
    """

    def init_state(self, params: Params) -> LearnerState:
        """The state before the first step."""

    def before_step(
        self, params: Params, state: LearnerState, tasks: Task, seed: int, step: int
    ) -> tuple[LearnerState, Params, Task]:
        """The state after collecting experience, theta with the constants that the gradient needs (named CARRIED...),
        and the tasks that the gradient is taken on."""

    def after_step(self, params: Params, state: LearnerState) -> LearnerState:
        """After the optimizer's step, with the new theta."""

    def metrics(self, state: LearnerState) -> dict[str, float]:
        """The metrics of the state that a training record logs."""


@runtime_checkable
class ExploringLearner(AssessingLearner, Protocol):
    """A learner that gathers its support set itself: a task is an environment to act in."""

    def explore_steps(self, params: Params, support: Batch, steps: int) -> Iterator[Adapted]:
        """What is adapted after 0, 1, ... `steps` trajectories of its own, as far as the rows of `support` go."""


class Dataset(Protocol):
    """Episodes as a pure function of (split, seed, step, task index). One of your own needs `kind` and `episodes`."""

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
        """What belongs beside a result: `split`, `split_sha256`, and further facts of the data set."""


class AlgorithmOptions:
    """What an algorithm may also have, and what is assumed without it."""

    predicts: PredictionKind = "values"
    inner_steps: int = 0
    first_order: bool = False
    inner_checkpoint: Any = None  # None: cannot trade time for memory; False: could, but does not
    adapted: tuple[str, ...] | None = ()  # name prefixes of the adapted parameters, None: all; (): no such setting
    prox: float | None = None
    cg_steps: int | None = None  # of an implicit meta-gradient
    approximation: str | None = None  # what its meta-gradient leaves out of the exact one, in a few words
    start: Callable[[Params, Batch], Params] | None = None  # theta, support set -> phi_0; None: theta itself
    zero_head: bool = False  # the outer loop leaves the head where it starts, at 0
    rescale: Callable[[float], Algorithm] | None = None  # the learner for tasks of so many times as many classes
    before_step: Any = None  # of a StatefulLearner
    predict_states: Any = None  # (states of one adaptation, x) -> predict of each, where all share what is costly
    transductive: bool = False  # `predict` looks at all queries of a task together (at inputs; it has no labels)
    numbered_classes: bool = False  # trained on batches whose labels are numbers of classes, not those of a task


class DatasetOptions:
    """What a data set may also have, and what is assumed without it. The first five are members of `Dataset` that one
    of your own may leave out (data/own.py); None: derived from a drawn episode."""

    input_shape: Callable[[], tuple[int, ...]] | None = None
    outputs: Callable[[int], int] | None = None
    check: Callable[[Split, EpisodeSpec], None] | None = None  # None: every size can be drawn
    reference_inputs: Callable[[int], Tensor] | None = None
    facts: Callable[[], dict[str, Any]] | None = None  # None: the split is unknown
    kinds: tuple[Kind, ...] | None = None  # of a class whose objects differ in `kind`
    most_ways: int | None = None  # the largest number of ways that every split has classes for
    metrics: dict[str, Any] | None = None  # further ones of a test task, name -> (prediction, y) -> number
    oracle: Callable[..., Metrics] | None = None  # (split, seed, step, tasks, spec) -> scores [T] of the best predictor
    posterior_mean: Callable[[Split, Task], Tensor] | None = None  # E[y | support set] at the queries, by split
    population: Callable[..., Task] | None = None  # (spec, count) -> tasks whose mean loss is the expected one
    oracle_band: Callable[..., Any] | None = None  # its mean and deviation at given inputs
    picture: tuple[int, int] | None = None  # rows and columns of an image that is completed
    members: dict[str, Any] | None = None  # the class names of each split, for split.json
    disjoint: Callable[[int], tuple[Any, int]] | None = None  # ways -> data with disjoint test tasks, their number
    numbered: Callable[[], tuple[Any, int]] | None = None  # data with class numbers as training labels, how many
    class_names: Callable[..., list[tuple[str, ...]]] | None = None  # (split, seed, step, tasks, spec) -> of each task
    query_names: Callable[..., list[list[str]]] | None = None  # likewise, of each task's queries: files, lines
    row: str = "row"  # what a row is called
    encode: Callable[..., Any] | None = None  # (x, y or None) in the units of the data -> as the learner gets them
    decode: Callable[..., Any] | None = None  # (predicted values, deviations) -> in the units of the data
    x_names: Sequence[str] = ()  # of the columns of the inputs and targets, of a data set from a table
    y_names: Sequence[str] = ()
    embed: Callable[..., Any] | None = None  # what reads features in place of images -> the data of these
    original: Any = None  # of such data, those with the inputs
    pixels: Any = None  # how image files become inputs (data/pixels.py), of a data set of images
    describe: Callable[[], dict[str, Any]] | None = None  # the facts that `job=data` prints, of a data set of files
    contact_sheet: Callable[[EpisodeSpec], Any] | None = None  # an image of a few training episodes, likewise
    task_sets: Callable[..., list[str]] | None = None  # (split, seed, step, tasks) -> the set of each, in a mixture
    largest: Any = None  # of one with episodes of several sizes, the data set whose episodes are all of the full size


class LossOptions:
    """What a loss may also have."""

    score: Callable[[Tensor, Tensor], Tensor] | None = None  # None: a function, or a loss of torch.nn


class ModelOptions:
    """What a network may also have, and what is assumed without it."""

    norm: str | None = None  # the name of its normalisation
    fit: Callable[..., Model] | None = None  # (input_shape, outputs) -> for these
    fixed: Any = None  # population statistics, once calibrated
    measure: Callable[[Params, Tensor], Any] | None = None  # parameters, inputs -> the statistics of each normalisation
    matmul_only: bool = False  # made of matrix products alone: channels-last and grouped convolutions do not matter
    fixed_part: Any = None  # what comes before all that is trained (data/features.py)
    weights_sha256: str | None = None  # of trained weights that it begins with, which a run's config.yaml notes
    recurrent: bool = False  # as many operations as time steps: compiling may take minutes, and is left to the user


class PenaltyOptions:
    """What a penalty may also have, and what is assumed without it."""

    kinds: tuple[Kind, ...] | None = None  # of data; None: all
    allowed_where: tuple[str, ...] = ("inner", "outer", "both")  # choices of `where`
    method: str | None = None  # subgradient or prox, of a penalty with a proximal operator
    targets: tuple[str, ...] | None = None  # name prefixes of the penalised tensors; None: all weights
    learned: bool = False  # it has a meta-learned weight
    distance_only: bool = False  # a function of phi - theta
    unopposed: bool = False  # in the outer objective, nothing opposes the fall of its learned weight to 0
    compares_tasks: bool = True  # of a TaskPenalty: needs two tasks or more
    init: Callable[[Params], Params] | None = None  # weights -> meta-parameters of its own
    wrap: Callable[..., Model] | None = None  # (model, prefix, input_shape) -> the model with noise
    objection: Callable[[Algorithm], str | None] | None = None  # why it means nothing with an algorithm


def optional(component: Any, options: type, name: str) -> Any:
    """`component.NAME`, or the default that `options` declares where the component has no such member."""
    return getattr(component, name, getattr(options, name))
