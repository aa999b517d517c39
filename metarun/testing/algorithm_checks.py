"""What every algorithm must do: the steps of `check_algorithm`, each on an `AlgorithmCase`, in float64 on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from metarun.algorithms.losses import GaussianLikelihood
from metarun.compute.device import Placement
from metarun.compute.linalg import norm
from metarun.compute.task_axis import map_tasks
from metarun.config.schema import OptimConfig
from metarun.errors import UserError
from metarun.models.norm import NORMS
from metarun.testing.episodes import DATASETS, SPECS, select_task
from metarun.testing.failure import expect
from metarun.testing.gradients import (
    are_equal,
    copy_tensors,
    expect_close,
    expect_close_tensors,
    expect_slope,
    list_tensors,
    relative_error,
)
from metarun.training.evaluation import replace_model
from metarun.training.own_algorithm import check_members
from metarun.types import (
    CARRIED,
    Algorithm,
    AlgorithmOptions,
    Batch,
    Dataset,
    EpisodeSpec,
    GradientLearner,
    Kind,
    Metrics,
    Params,
    StatefulLearner,
    Task,
    optional,
)

TASKS = 3
ROUNDED = 1e-4
"""Relative limit of a meta-gradient in float32: some hundred operations, each rounding by 6e-8, add up to 1e-5 if they
conspire; a solver or Adam's g / |g| multiply that by their conditioning."""


@dataclass(frozen=True)
class AlgorithmCase:
    """An algorithm on a kind of data."""

    kind: Kind
    build: Callable[[str | None, Dataset, int], Algorithm]  # norm (None: the usual), data set, ways -> with its network
    norms: tuple[str, ...]  # that its network can have
    build_easy: Callable[[Dataset, int], tuple[Algorithm, OptimConfig]]  # to learn an easy task in sixty steps

    @property
    def dataset(self) -> Dataset:
        return DATASETS[self.kind]

    @property
    def spec(self) -> EpisodeSpec:
        return SPECS[self.kind]

    def learner(self, norm: str | None = None) -> Algorithm:
        return self.build(norm, self.dataset, self.spec.ways)

    def learners(self, norms: tuple[str, ...]) -> list[tuple[str, Algorithm]]:
        """With the usual norm, and with each of these that its network can have and the algorithm takes."""
        found = [("its usual norm", self.learner())]
        for name in norms:
            if name in self.norms:
                try:
                    found.append((f"norm={name}", self.learner(name)))
                except UserError as error:  # an algorithm may refuse norms that mix rows
                    if "norm" not in str(error):
                        raise
        return found

    def start(self, algorithm: Algorithm, dtype: torch.dtype = torch.float64) -> tuple[Params, Task]:
        """Meta-parameters and tasks [T, ...], as a learner with state prepares them."""
        tasks = self.dataset.episodes("train", 0, 0, range(TASKS), self.spec)
        params = algorithm.init(0)
        if isinstance(algorithm, StatefulLearner):
            _, params, tasks = algorithm.before_step(params, algorithm.init_state(params), tasks, 0, 0)
        placement = place(dtype)
        return placement.move_params(params), placement.move_task(tasks)

    def calibrate(self, algorithm: Algorithm, params: Params) -> Algorithm:
        """The learner that is evaluated: with population statistics, if its norm has such."""
        reference = place().move(self.dataset.reference_inputs(64))
        return replace_model(algorithm, algorithm.model.calibrate(params, reference))

    def start_one(self, algorithm: Algorithm) -> tuple[Params, Task]:
        params, tasks = self.start(algorithm)
        return params, select_task(tasks, 0)


def place(dtype: torch.dtype = torch.float64) -> Placement:
    return Placement(torch.device("cpu"), dtype, None, False)


def check_interface(case: AlgorithmCase) -> None:
    """The members of `metarun.types.Algorithm`, and parameters that are named tensors."""
    algorithm = case.learner()
    check_members("its class", algorithm)
    expect(
        dataclasses.is_dataclass(algorithm),
        f"{type(algorithm).__name__} is no dataclass",
        "a missing @dataclass(frozen=True)",
    )
    params = algorithm.init(0)
    named = isinstance(params, dict) and all(isinstance(v, Tensor) for v in params.values())
    expect(named, "init does not return a dictionary of tensors", "a list of parameters, or nested dictionaries")
    result = algorithm.meta_grad(*case.start_one(algorithm))
    pair = isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, dict) for part in result)
    expect(pair, "meta_grad does not return a gradient and metrics, two dictionaries", "a gradient alone")
    expect(
        not any(v.requires_grad for v in params.values()),
        "init returns tensors that require a gradient",
        "nn.Parameter: detach them",
    )


def check_seeds(case: AlgorithmCase) -> None:
    """From the initial weights to the meta-gradient, the same seed gives the same bits, another one other weights."""
    algorithm = case.learner()
    params, task = case.start_one(algorithm)
    first = algorithm.meta_grad(params, task)
    drawn = "torch.rand and the like without generator=torch.Generator().manual_seed(seed)"
    with torch.random.fork_rng(devices=[]):
        torch.rand(5)  # the state that a seed of 0 would leave is another
        state = torch.get_rng_state()
        again = algorithm.init(0)
        expect(all(k in again or k.startswith(CARRIED) for k in params), "init(0) has other names than before", drawn)
        same = all(torch.equal(v.double(), params[k]) for k, v in again.items())
        expect(same, "init(0) gives other numbers when called again", drawn)
        second = algorithm.meta_grad(params, task)
        expect(are_equal(second, first), "meta_grad gives other numbers when called again", drawn)
        algorithm.predict(algorithm.adapt(params, task.support), task.query.x)
        expect(torch.equal(torch.get_rng_state(), state), "the global random state changes", drawn)
    other = algorithm.init(1)
    differ = any(not torch.equal(again[k], other[k]) for k in again)
    expect(differ, "init(0) and init(1) are equal", "a seed that is not used")


def check_purity(case: AlgorithmCase) -> None:
    """Parameters and tasks stay as they were, and no result drags a graph along."""
    algorithm = case.learner()
    params, task = case.start_one(algorithm)
    before = copy_tensors((params, task))
    gradient = algorithm.meta_grad(params, task)
    adapted = algorithm.adapt(params, task.support)
    predicted = algorithm.predict(adapted, task.query.x)
    states = list(algorithm.adaptations(params, task.support, 2))
    expect(
        are_equal((params, task), before), "parameters or tasks are changed", "an operation in place, as sub_() or +="
    )
    results = {"meta_grad": gradient, "adapt": adapted, "predict": predicted, "adaptations": states}
    for name, result in results.items():
        attached = any(t.requires_grad for t in list_tensors(result))
        expect(
            not attached,
            f"what {name} returns requires a gradient",
            "requires_grad_() or backward(): use torch.func.grad",
        )


def check_shapes(case: AlgorithmCase) -> None:
    """A gradient for each parameter, of its shape; scalar metrics, `loss` and that of the loss among them."""
    algorithm = case.learner()
    params, task = case.start_one(algorithm)
    gradient, metrics = algorithm.meta_grad(params, task)
    found, expected = ({k: [*v.shape] for k, v in tree.items()} for tree in (gradient, params))
    other = {k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)}
    listed = ", ".join(f"{k}: {found.get(k)} for {expected.get(k)}" for k in sorted(other))
    expect(
        not other,
        f"meta_grad's gradient does not have the parameters' names and shapes ({listed})",
        "a parameter left out",
    )
    # A learner with state may have its returns in the state instead.
    needed = {"loss"} if isinstance(algorithm, StatefulLearner) else {"loss", algorithm.loss.metric}
    missing = sorted(needed - metrics.keys())
    expect(not missing, f"meta_grad's metrics lack {', '.join(missing)}", "losses.score_prediction returns both")
    long = [k for k, v in metrics.items() if v.shape != ()]
    expect(not long, f"the metric {long[:1]} is no scalar", "a metric that is not averaged over rows")
    moves = any(float(g.abs().max()) > 0 for g in gradient.values() if g.numel())
    expect(moves, "the meta-gradient is 0", "a detach() or torch.no_grad() around all of it")


def check_task_axis(case: AlgorithmCase) -> None:
    """`vmap` over tasks equals a loop."""
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    batched = vmap(algorithm.meta_grad, in_dims=(None, 0))(params, tasks)
    cause = "a shape or a mean that counts on the task being alone, or state kept in the object"
    for i in range(TASKS):
        expected = algorithm.meta_grad(params, select_task(tasks, i))
        expect_equal_meta_gradients(
            [{k: v[i] for k, v in tree.items()} for tree in batched], expected, f"task {i} under vmap", cause
        )


def check_chunks(case: AlgorithmCase) -> None:
    """Tasks in chunks give what all together do; in chunks of one, without vmap and with images channels last."""
    algorithm = case.learner()
    params, tasks = case.start(algorithm)
    whole = map_tasks(algorithm.meta_grad, TASKS, None)(params, tasks)
    cause = "state kept in the object between calls, or a view() that needs another memory order: use reshape()"
    for chunk in (1, 2):
        found = map_tasks(algorithm.meta_grad, TASKS, chunk)(params, tasks)
        expect_equal_meta_gradients(found, whole, f"in chunks of {chunk}", cause)


def expect_equal_meta_gradients(
    found: list[Params] | tuple[Params, Metrics], expected: tuple[Params, Metrics], what: str, cause: str
) -> None:
    """Expect equal gradients and metrics; a metric may be a residual of rounding, hence an absolute limit too."""
    expect_close(found[0], expected[0], f"{what}, the meta-gradient", cause)
    expect(found[1].keys() == expected[1].keys(), f"{what}, the metrics are {[*found[1]]}, not {[*expected[1]]}", cause)
    for name, value in expected[1].items():
        expect_close_tensors(found[1][name], value, f"{what}, the metric {name}", cause)


def check_states(case: AlgorithmCase) -> None:
    """steps + 1 states, of which the one after the training's number of steps is that of `adapt`; a learner without
    steps has one state, whatever it is asked for."""
    algorithm = case.learner()
    params, task = case.start_one(algorithm)
    steps = optional(algorithm, AlgorithmOptions, "inner_steps")
    states = list(algorithm.adaptations(params, task.support, steps))
    cause = "a generator that does not yield theta itself first, or yields in the wrong place"
    expect(len(states) == steps + 1, f"adaptations(..., {steps}) yields {len(states)} states, not {steps + 1}", cause)
    found, expected = (algorithm.predict(a, task.query.x) for a in (states[-1], algorithm.adapt(params, task.support)))
    expect(torch.equal(found, expected), f"the state after {steps} steps predicts otherwise than adapt's", cause)
    if algorithm.test_inner_steps == 0:
        count = len(list(algorithm.adaptations(params, task.support, 5)))
        expect(count == 1, f"test_inner_steps is 0, and adaptations(..., 5) yields {count} states, not 1", cause)


def check_predictions(case: AlgorithmCase) -> None:
    """Finite, one row for each query, in training and at each step of a test, for every norm: default settings must not
    diverge on default weights. Fixed statistics do not bound the activations, and no rate suits all untrained weights:
    steps of gradient descent with them are left out."""
    for title, algorithm in case.learners(NORMS):
        params, task = case.start_one(algorithm)
        numbers = 2 if isinstance(algorithm.loss, GaussianLikelihood) else 1  # a mean and a deviation for each target
        shape = [len(task.query.x), numbers * case.dataset.outputs(case.spec.ways)]
        tested = case.calibrate(algorithm, params)
        predictions = [algorithm.predict(algorithm.adapt(params, task.support), task.query.x)]
        steps = 0 if tested.model is not algorithm.model else algorithm.test_inner_steps
        states = tested.adaptations(params, task.support, steps)
        predictions += [tested.predict(adapted, task.query.x) for adapted in states]
        for number, predicted in enumerate(predictions):
            where = f"{title}, after step {number - 1}" if number else f"{title}, in training"
            found = [*predicted.shape]
            expect(
                found == shape,
                f"{where}: predict returns {found}, not {shape}",
                "a head of another size, or a missing axis",
            )
            expect(
                bool(predicted.isfinite().all()), f"{where}: not finite", "a rate that is too large, or a division by 0"
            )


def check_support_order(case: AlgorithmCase) -> None:
    """With default settings a learner sees a set: sums over its rows are only rounded differently."""
    algorithm = case.learner()
    params, task = case.start_one(algorithm)
    order = torch.randperm(len(task.support.x), generator=torch.Generator().manual_seed(0))
    permuted = task._replace(support=Batch(*(v[order] for v in task.support)))
    cause = "rows taken by position, as y.view(K, N); classes have any order"
    found, expected = (algorithm.meta_grad(params, t) for t in (permuted, task))
    expect_equal_meta_gradients(found, expected, "with its support rows in another order", cause)
    changed, predicted = (algorithm.predict(algorithm.adapt(params, t.support), t.query.x) for t in (permuted, task))
    expect_close_tensors(changed, predicted, "with its support rows in another order, the prediction", cause)


def check_query_order(case: AlgorithmCase) -> None:
    """Row m of the prediction belongs to query m, whatever stands around it: permuted queries, and one alone. After one
    step, since a descent with fixed statistics leaves the finite numbers on some untrained networks."""
    cause = "predict without the statistics that adapt takes with model.query_stats(params, support.x), "
    cause += "as model.apply(params, x, stats); or a mean over queries"
    for title, algorithm in case.learners(("none", "support", "joined", "population")):
        params, task = case.start_one(algorithm)
        tested = case.calibrate(algorithm, params)
        if title == "its usual norm" and getattr(tested.model, "norm", "none") == "batch":
            continue  # whose queries see each other, by design
        *_, adapted = tested.adaptations(params, task.support, 1)
        predicted = tested.predict(adapted, task.query.x)
        order = torch.randperm(len(predicted), generator=torch.Generator().manual_seed(1))
        fewer = {"two queries": order[:2], "one query": order[:1]}
        if optional(tested, AlgorithmOptions, "transductive"):
            fewer = {}  # it declares that its queries see each other
        for of, rows in {"queries in another order": order, **fewer}.items():
            found = tested.predict(adapted, task.query.x[rows])
            what = f"{title}: the prediction of {of}"
            expect_close_tensors(found, predicted[rows], what, cause)


def check_precision(case: AlgorithmCase) -> None:
    """float32 is close to float64, and each stays what it is."""
    algorithm = case.learner()
    found = []
    for dtype in (torch.float64, torch.float32):
        params, tasks = case.start(algorithm, dtype)
        found.append(algorithm.meta_grad(params, select_task(tasks, 0)))
        others = {str(t.dtype) for t in list_tensors(found[-1])} - {str(dtype)}
        cause = "a torch.zeros, ones or eye without .to(x), or float()"
        expect(not others, f"with {dtype} meta_grad returns {', '.join(others)}", cause)
    exact, rounded = found
    error = relative_error({k: g.double() for k, g in rounded[0].items()}, exact[0])
    cause = "an ill-conditioned solve, a small eps, or a difference of large numbers"
    expect(
        error <= ROUNDED,
        f"in float32 the meta-gradient differs by {error:.1e} of its length (limit {ROUNDED:.0e})",
        cause,
    )
    losses = float(rounded[1]["loss"]), float(exact[1]["loss"])
    expect(
        abs(losses[0] - losses[1]) <= ROUNDED * abs(losses[1]),
        f"the loss is {losses[0]} in float32, and {losses[1]}",
        cause,
    )


def check_meta_gradient(case: AlgorithmCase) -> None:
    """The gradient of the metric `loss` by central differences.

    Left out, by what they declare: learners whose gradient is no gradient of that loss (first order, Reptile, iMAML's
    damped implicit gradient) and learners that act, whose losses hold targets constant.
    """
    algorithm = case.learner()
    implicit = optional(algorithm, AlgorithmOptions, "cg_steps") is not None
    if isinstance(algorithm, GradientLearner) and (implicit or not algorithm.sees_adaptation):
        return
    if case.kind == "control":
        return
    params, task = case.start_one(algorithm)
    gradient = algorithm.meta_grad(params, task)[0]
    cause = "a detach(), .data or torch.no_grad() in adapt or predict, or a `loss` that is not what is differentiated"
    what = "the meta-gradient is not the slope of its loss"
    expect(float(norm(gradient)) < float("inf"), "the meta-gradient is not finite", "a square root or a norm at 0")
    expect_slope(lambda theta: algorithm.meta_grad(theta, task)[1]["loss"], gradient, params, what, cause)
