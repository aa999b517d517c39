"""`check_algorithm`: whether an algorithm does what the trainer, the evaluation and the analyses count on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import metarun
from metarun.algorithms.losses import loss_for
from metarun.algorithms.objective import NO_REGULARIZATION
from metarun.config.schema import Config, OptimConfig
from metarun.models.mlp import mlp
from metarun.models.norm import NORMS
from metarun.testing import algorithm_checks as checks
from metarun.testing.algorithm_checks import AlgorithmCase
from metarun.testing.episodes import DATASETS, SPECS
from metarun.testing.failure import Checks, call_with, expect, name_of, naming, refuse_unknown_steps, run_checks
from metarun.testing.learning import check_learning
from metarun.testing.models import make_model
from metarun.training.evaluation import REFERENCE_INPUTS
from metarun.training.experiment import build_learner
from metarun.training.own_algorithm import check_members, explain_errors, locate_algorithm
from metarun.types import Algorithm, AlgorithmOptions, Dataset, Kind, optional

ALGORITHM_CHECKS: Checks = {
    "interface": checks.check_interface,
    "seeds": checks.check_seeds,
    "purity": checks.check_purity,
    "shapes": checks.check_shapes,
    "task axis": checks.check_task_axis,
    "chunks": checks.check_chunks,
    "states": checks.check_states,
    "predictions": checks.check_predictions,
    "support order": checks.check_support_order,
    "query order": checks.check_query_order,
    "precision": checks.check_precision,
    "meta-gradient": checks.check_meta_gradient,
    "learning": check_learning,
}
"""The steps of `check_algorithm` by name, in their order."""

OUTER_LR = 0.01  # of sixty steps
SMALL = {"mlp": ("model.hidden=[8,6]", "model.hidden=[20,20]"), "conv4": ("model.filters=4",) * 2}
"""The sizes of metarun's networks in the checks, and in learning an easy task."""


def check_algorithm(
    make: Callable[..., Algorithm],
    kind: Kind | None = None,
    *,
    network: Callable[..., Any] | None = None,
    optim: OptimConfig | None = None,
    skip: Collection[str] = (),
) -> None:
    """Raise AssertionError if an algorithm does not do what metarun counts on.

        check_algorithm(functools.partial(Ridge, strength=0.1))
        check_algorithm(lambda model, loss, ways: Ridge(model, loss, strength=0.1), kind="regression")

    Args:
        make: a class or function that makes the algorithm. It is called with those of `model`, `loss`, `ways`,
            `input_shape`, `outputs`, `reference_inputs`, `network`, `regularization` and `environment` that it has a
            parameter for.
        kind: regression, classification or control. None: each of the algorithm's `kinds`.
        network: the class of a `torch.nn.Module`, or a function (input_shape, outputs) -> network, for learning too.
            It is tried with each norm if it has a parameter `norm`. None: a small MLP.
        optim: the outer optimizer of the step "learning". None: Adam with a rate of 0.01.
        skip: names of steps to leave out, of `metarun.testing.algorithms.ALGORITHM_CHECKS`: "meta-gradient" for one
            that is no gradient of `loss` by design, "learning" for one that needs longer.
    """
    refuse_unknown_steps(skip, ALGORITHM_CHECKS)
    title, optim = name_of(make), optim or OptimConfig(lr=OUTER_LR)

    def build(hidden: tuple[int, ...], norm: str | None, dataset: Dataset, ways: int) -> Algorithm:
        given = network or functools.partial(mlp, hidden=hidden, norm="none")
        chosen = functools.partial(given, norm=norm) if norm else given
        return _make_algorithm(make, functools.partial(make_model, chosen), dataset, ways)

    with naming(f"{title}, interface"):
        first = build((8, 6), None, DATASETS[kind or "regression"], SPECS[kind or "regression"].ways)
        kinds = (kind,) if kind else first.kinds
        expect(
            bool(kinds) and {*kinds} <= {*DATASETS},
            f"kinds is {kinds!r}, not of {', '.join(DATASETS)}",
            "a string in place of a tuple",
        )
    norms = NORMS if network is None or "norm" in inspect.signature(network).parameters else ()
    for each in kinds:
        case = AlgorithmCase(
            each,
            functools.partial(build, (8, 6)),
            norms,
            lambda dataset, ways: (build((20, 20), None, dataset, ways), optim),
        )
        _run(f"{title} on {each}", case, skip)


def check_algorithm_named(
    name: str,
    kind: Kind | None = None,
    *,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    model: str = "mlp",
    skip: Collection[str] = (),
) -> None:
    """The same for an algorithm with the settings of its YAML, as `algo=NAME` would compose it.

        check_algorithm_named("ridge", config_dir="conf", overrides=["trusted_modules=[own]"])

    Args:
        name: the option, algo/NAME.yaml in metarun's settings or in `config_dir`.
        kind: regression, classification or control. None: each of its `kinds`.
        overrides: further settings, as on the command line.
        config_dir: a folder with YAML files of your own.
        model: the network, an option of `model=`; metarun's are made small.
        skip: names of steps to leave out.
    """
    refuse_unknown_steps(skip, ALGORITHM_CHECKS)
    small, easy = SMALL.get(model, ((), ()))
    title = f"algo={name}"
    with naming(f"{title}, interface"):
        configs = [
            _compose((f"algo={name}", f"model={model}", *([size] if size else []), *more, *overrides), config_dir)
            for size, more in ((small, ()), (easy, (f"optim.lr={OUTER_LR}",)))
        ]
        kinds = (kind,) if kind else locate_algorithm(configs[0])[1].kinds

    def build(norm: str | None, dataset: Dataset, ways: int) -> Algorithm:
        config = configs[0] if norm is None else replace(configs[0], model={**configs[0].model, "norm": norm})
        return build_learner(config, dataset, ways)

    norms = NORMS if "norm" in configs[0].model else ()
    for each in kinds:
        case = AlgorithmCase(
            each, build, norms, lambda dataset, ways: (build_learner(configs[1], dataset, ways), configs[1].optim)
        )
        _run(f"{title} on {each}", case, skip)


@functools.cache
def _compose(overrides: tuple[str, ...], config_dir: str | Path | None) -> Config:
    """With what stands in the YAML and not what a recipe makes of it."""
    return metarun.compose([*overrides, "recipe=absent"], config_dir)


def _run(title: str, case: AlgorithmCase, skip: Collection[str]) -> None:
    with naming(f"{title}, interface"):
        algorithm = case.learner()
    explained = {name: functools.partial(_explain, check, algorithm) for name, check in ALGORITHM_CHECKS.items()}
    run_checks(title, explained, case, skip)


def _explain(check: Callable[[Any], None], algorithm: Algorithm, case: AlgorithmCase) -> None:
    with explain_errors(algorithm):
        check(case)


def _make_algorithm(
    make: Callable[..., Algorithm], network: Callable[..., Any], dataset: Dataset, ways: int
) -> Algorithm:
    """The algorithm with a network that ends in a head or in its features, and with the loss, as it declares."""
    shape, outputs = dataset.input_shape(), dataset.outputs(ways)

    def made(head: bool, predicts: Any) -> Algorithm:
        provided = {
            "model": network(shape, outputs if head else None),
            "loss": loss_for(dataset.kind, predicts),
            "regularization": NO_REGULARIZATION,
            "reference_inputs": dataset.reference_inputs(REFERENCE_INPUTS),
            **{"ways": ways, "input_shape": shape, "outputs": outputs, "network": network},
            **({"environment": dataset} if dataset.kind == "control" else {}),
        }
        return call_with(make, provided)

    first = made(True, "values")
    check_members("its class", first)
    predicts = optional(first, AlgorithmOptions, "predicts")
    return first if first.head and predicts == "values" else made(first.head, predicts)
