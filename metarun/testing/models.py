"""`check_model`: whether a network does what algorithms, the evaluation and the analyses count on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from metarun.algorithms.losses import MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.compute.linalg import dot
from metarun.models.module import ModuleNetwork, from_module, module
from metarun.testing.failure import Checks, call_with, expect, name_of, naming, refuse_unknown_steps, run_checks
from metarun.testing.gradients import (
    are_equal,
    copy_tensors,
    draw_direction,
    expect_close_tensors,
    expect_slope,
)
from metarun.types import HEAD, Batch, Model, ModelOptions, Params, Task, optional

MEMBERS = ("features", "init", "apply", "activations", "query_stats", "calibrate")
ROWS, TASKS = 5, 3
TRANSDUCTIVE = ("batch", "population")
"""Norms that take the statistics of the batch at hand while training."""


@dataclass(frozen=True)
class ModelCase:
    model: Model
    input_shape: tuple[int, ...]
    outputs: int | None  # None: it ends in its features

    def start(self) -> tuple[Params, Tensor]:
        """Parameters in float64, a little away from the initial ones, which may be 0, and inputs [ROWS, ...]."""
        params = {k: v.double() if v.is_floating_point() else v for k, v in self.model.init(0).items()}
        moved = draw_direction(params)
        return {k: v + 0.3 * moved[k] for k, v in params.items()}, self.inputs(0)

    def inputs(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(ROWS, *self.input_shape, generator=generator, dtype=torch.float64)

    @property
    def norm(self) -> str:
        return optional(self.model, ModelOptions, "norm") or "none"


def check_interface(case: ModelCase) -> None:
    """The members of `metarun.types.Model`, and parameters that are named tensors."""
    missing = [name for name in MEMBERS if not hasattr(case.model, name)]
    advice = "metarun.types.Model has them; from_module makes a torch.nn.Module into one"
    expect(not missing, f"{type(case.model).__name__} has no `{', '.join(missing)}`", advice)
    params = case.model.init(0)
    named = isinstance(params, dict) and all(isinstance(v, Tensor) for v in params.values())
    expect(named, "init does not return a dictionary of tensors", "the module itself, or a list of parameters")
    attached = [k for k, v in params.items() if v.requires_grad]
    expect(not attached, f"the parameter {attached[:1]} requires a gradient", "an nn.Parameter: detach it")


def check_seeds(case: ModelCase) -> None:
    """The same seed gives the same bits, another one other weights, and the global random state stays."""
    cause = "torch.manual_seed, or weights drawn without generator=torch.Generator().manual_seed(seed)"
    with torch.random.fork_rng(devices=[]):
        torch.rand(5)  # the state that a seed of 0 would leave is another
        state = torch.get_rng_state()
        params = case.model.init(0)
        case.model.apply(params, case.inputs(0).float())
        expect(torch.equal(torch.get_rng_state(), state), "the global random state changes", cause)
        torch.rand(5)
        expect(are_equal(params, case.model.init(0)), "init(0) gives other numbers when called again", cause)
    given = isinstance(case.model, ModuleNetwork) and case.model.make is None  # weights of a module that exists
    if not given:
        other = case.model.init(1)
        expect(not are_equal(params, other), "init(0) and init(1) are equal", "a seed that is not used")


def check_shapes(case: ModelCase) -> None:
    """[B, ...] -> [B, outputs], or [B, features]; finite, in the precision of the parameters."""
    params, x = case.start()
    columns = case.model.features if case.outputs is None else case.outputs
    what = "features" if case.outputs is None else "outputs"
    for rows in (x, x[:2]):
        found = [*case.model.apply(params, rows).shape]
        cause = "a head of a fixed size, an axis too many, or rows that are not the first axis"
        expect(found == [len(rows), columns], f"apply returns {found}, not {[len(rows), columns]} ({what})", cause)
    for dtype in (torch.float32, torch.float64):
        put_out = case.model.apply({k: v.to(dtype) for k, v in params.items()}, x.to(dtype))
        same = put_out.dtype == dtype
        expect(same, f"for {dtype} apply returns {put_out.dtype}", "float(), or a torch.zeros without .to(x)")
        expect(bool(put_out.isfinite().all()), "apply returns numbers that are not finite", "a division by 0")


def check_head(case: ModelCase) -> None:
    """The weights of the head, and no others, are named `head.*`; `activations` end in the input of the head."""
    params, x = case.start()
    names = [k for k in params if k.startswith(HEAD)]
    cause = "algo.adapted=[head] and penalties find the head by its name; from_module takes head=NAME"
    if case.outputs is None:
        expect(not names, f"it ends in its features, and has parameters {names}", cause)
    else:
        expect(bool(names), f"no parameter is named {HEAD}*", cause)
    found = case.model.activations(params, x)
    last, needed = [*list(found.values())[-1].shape] if found else None, [ROWS, case.model.features]
    expect(last == needed, f"the last of activations is {last}, not {needed}", "a layer left out")


def check_purity(case: ModelCase) -> None:
    """Parameters and inputs stay as they were, and a second call gives the same bits."""
    params, x = case.start()
    before = copy_tensors((params, x))
    first = case.model.apply(params, x)
    second = case.model.apply(params, x)
    expect(
        are_equal((params, x), before),
        "apply changes its parameters or its inputs",
        "an operation in place, as relu_()",
    )
    expect(torch.equal(first, second), "apply gives other numbers when called again", "dropout, or running statistics")
    expect(
        not first.requires_grad, "what apply returns requires a gradient", "weights of its own beside the parameters"
    )


def check_task_axis(case: ModelCase) -> None:
    """`vmap` over tasks with weights of their own equals a loop."""
    params, _ = case.start()
    tasks = [({k: v + 0.1 * i * v.abs() for k, v in params.items()}, case.inputs(i)) for i in range(TASKS)]
    stacked = {k: torch.stack([weights[k] for weights, _ in tasks]) for k in params}
    found = vmap(case.model.apply)(stacked, torch.stack([x for _, x in tasks]))
    cause = "weights of its own beside the parameters, or a reshape that counts on one task"
    for i, (weights, x) in enumerate(tasks):
        expect_close_tensors(found[i], case.model.apply(weights, x), f"task {i} under vmap", cause)


def check_derivatives(case: ModelCase) -> None:
    """First and second derivatives by the parameters against central differences, in float64."""
    params, x = case.start()

    def loss(weights: Params) -> Tensor:
        return case.model.apply(weights, x).square().sum()

    def slope(weights: Params) -> Tensor:
        return dot(grad(loss)(weights), along)

    cause = "a detach(), .data or no_grad, float32 inside, or a layer without a second derivative"
    along = draw_direction({k: v.flip(0) if v.ndim else v for k, v in params.items()})
    expect_slope(loss, grad(loss)(params), params, "the gradient is not the slope of apply", cause)
    expect_slope(slope, grad(slope)(params), params, "the second derivative is not the slope of the first", cause)


def check_statistics(case: ModelCase) -> None:
    """With the statistics of a support set, or calibrated, a row's output does not depend on the rows beside it."""
    params, x = case.start()
    support = case.inputs(1)
    stats = case.model.query_stats(params, support)
    calibrated = case.model.calibrate(params, support)
    variants: dict[str, Callable[[Tensor], Tensor]] = {"calibrated": functools.partial(calibrated.apply, params)}
    if stats is not None:
        variants = {"with query_stats": lambda rows: case.model.apply(params, rows, stats)}
    elif case.norm in TRANSDUCTIVE:
        variants = variants if case.norm == "population" else {}
    cause = "a normalisation over the rows: state it as `norm`, and let query_stats or calibrate fix its statistics"
    for name, apply in variants.items():
        together = apply(x)
        expect_close_tensors(apply(x.flip(0)), together.flip(0), f"{name}, the rows in another order", cause)
        for count in (2, 1):
            expect_close_tensors(apply(x[:count]), together[:count], f"{name}, a batch of {count}", cause)
    again = calibrated.calibrate(params, support).apply(params, x)
    expect_close_tensors(again, calibrated.apply(params, x), "calibrated twice", "statistics that add up")


def check_maml(case: ModelCase) -> None:
    """MAML's meta-gradient through two inner steps against central differences."""
    params, x = case.start()
    learner = MAML(case.model, MeanSquaredError(), 0.01, inner_steps=2, test_inner_steps=2, first_order=False)
    y = torch.randn(case.model.apply(params, x).shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    task = Task(Batch(x, y), Batch(case.inputs(3), y.flip(0)))
    gradient, _ = learner.meta_grad(params, task)
    cause = "a detach() or no_grad in apply, or a layer without a second derivative"
    what = "MAML's meta-gradient is not the slope of its loss"
    expect_slope(lambda theta: learner.meta_grad(theta, task)[1]["loss"], gradient, params, what, cause)


MODEL_CHECKS: Checks = {
    "interface": check_interface,
    "seeds": check_seeds,
    "shapes": check_shapes,
    "head": check_head,
    "purity": check_purity,
    "task axis": check_task_axis,
    "derivatives": check_derivatives,
    "statistics": check_statistics,
    "MAML": check_maml,
}
"""The steps of `check_model` by name, in their order."""


def check_model(make: Any, input_shape: tuple[int, ...], outputs: int = 3, *, skip: Collection[str] = ()) -> None:
    """Raise AssertionError if a network does not do what metarun counts on; with its head, and without.

        check_model(functools.partial(ResNet, width=16), (3, 32, 32))     # a torch.nn.Module's class
        check_model(functools.partial(deep, width=8, depth=2, norm="none"), (4,))     # a factory of a Model

    Args:
        make: a `torch.nn.Module`, a class of one, or a function that makes one or a `Model` (metarun.types). Classes
            and functions are called with those of `input_shape` and `outputs` that they have a parameter for.
        input_shape: of one row.
        outputs: of the head.
        skip: names of steps to leave out, of `metarun.testing.models.MODEL_CHECKS`.
    """
    refuse_unknown_steps(skip, MODEL_CHECKS)
    title = name_of(make)
    for ends in (outputs, None):
        name = f"{title} with {ends} outputs" if ends is not None else f"{title} without its head"
        with naming(f"{name}, interface"):
            model = make_model(make, input_shape, ends)
        if model is not None:
            run_checks(name, MODEL_CHECKS, ModelCase(model, input_shape, ends), skip)


def make_model(make: Any, input_shape: tuple[int, ...], outputs: int | None) -> Model | None:
    """The network that an experiment would have; None for a Model without its head, if it cannot be without."""
    provided = {"input_shape": input_shape, "outputs": outputs}
    made, args = (make.func, make.keywords) if isinstance(make, functools.partial) else (make, {})
    if isinstance(made, type) and issubclass(made, nn.Module) and "<locals>" not in made.__qualname__:
        package = made.__module__.partition(".")[0]
        return module(input_shape, outputs, f"{made.__module__}.{made.__name__}", dict(args), None, "batch", (package,))
    is_network = isinstance(make, nn.Module) or (hasattr(make, "apply") and not isinstance(make, type))
    found = make if is_network else call_with(make, provided)
    network = from_module(found) if isinstance(found, nn.Module) else found
    fit = optional(network, ModelOptions, "fit")
    if fit is not None:
        return fit(input_shape, outputs)
    takes_outputs = not is_network and "outputs" in inspect.signature(make).parameters
    return network if outputs is not None or takes_outputs else None
