"""One gate for every algorithm: each YAML of conf/algo passes each step of `metarun.testing`, with its own settings.

A case is an algorithm on a kind of data: sinusoids (regression) with an MLP, labelled images with an MLP or a Conv4, or
a place to act in with an MLP. (What a learner that acts gains by 60 steps is nothing; test_pearl.py has longer runs.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import metarun
from metarun.config import catalogue
from metarun.config.components import component_class, locate
from metarun.errors import UserError
from metarun.models.norm import NORMS
from metarun.testing import check_algorithm_named
from metarun.testing.algorithms import ALGORITHM_CHECKS
from metarun.testing.episodes import DATASETS, SPECS
from metarun.training.experiment import build_learner
from metarun.types import Kind

ALGORITHMS = catalogue.list_options("algo")
ROW_NORMS = ("none", "layer")


class Case(NamedTuple):
    algo: str
    kind: Kind
    model: str

    def check(self, step: str, *overrides: str) -> None:
        others = ALGORITHM_CHECKS.keys() - {step}
        check_algorithm_named(self.algo, self.kind, model=self.model, overrides=overrides, skip=others)


def cases() -> Iterator[Any]:
    for algo in ALGORITHMS:
        kinds = component_class(locate("algo", catalogue.read_component("algo", algo))).kinds
        rows: list[tuple[Kind, str]] = [("regression", "mlp"), ("classification", "mlp"), ("classification", "conv4")]
        for kind, model in [*rows, ("control", "mlp")]:
            if kind in kinds:
                yield pytest.param(Case(algo, kind, model), id=f"{algo}-{kind}-{model}")


def test_every_yaml_is_a_case_of_every_kind_it_can_learn() -> None:
    """The table is the directory."""
    assert ALGORITHMS
    assert {row.values[0].algo for row in cases()} == {*ALGORITHMS}


@pytest.mark.parametrize("case", list(cases()))
@pytest.mark.parametrize("step", [step for step in ALGORITHM_CHECKS if step != "learning"])
def test_every_algorithm_passes_every_step(step: str, case: Case) -> None:
    case.check(step)


# ---------------------------------------------------------------- learning

SMALL_SETS = ("optim.lr=0.01", "optim.schedule=constant", "algo.representation=24")
HASTE = {
    "reptile": ("optim.lr=1", "algo.inner_lr=0.01", "algo.test_inner_steps=10"),
    "imaml": ("optim.lr=0.006", "algo.inner_steps=5", "algo.test_inner_steps=5"),
    "cnp": SMALL_SETS,
    "np": (*SMALL_SETS, "algo.latent=4"),
    "anp": (*SMALL_SETS, "algo.latent=4"),
    "tnpd": ("optim.lr=0.003", "optim.schedule=constant", "algo.width=24", "algo.heads=2", "algo.layers=2"),
    "convcnp": ("optim.lr=0.003", "optim.schedule=constant", "algo.width=24", "algo.layers=4", "algo.density=8"),
    "cvae": (*SMALL_SETS, "algo.latent=4", "algo.kl_warmup=0"),
}
"""Settings for a run of 60 steps. A YAML that is not named here learns with its own, at an outer rate of 0.01."""

ALIKE = ("fomaml", "mamlpp", "cvae")


def easy() -> Iterator[Any]:
    """On classes `make test` has one learner with an inner loop and one without."""
    for row in cases():
        case: Any = row.values[0]
        if case.model == "mlp" and case.kind != "control":
            sampled = case.algo in ("maml", "protonet") or (case.kind == "regression" and case.algo not in ALIKE)
            yield pytest.param(case, id=row.id, marks=[*row.marks, *([] if sampled else [pytest.mark.long])])


@pytest.mark.parametrize("case", list(easy()))
def test_sixty_steps_halve_the_validation_error_of_an_easy_task(case: Case) -> None:
    case.check("learning", *HASTE.get(case.algo, ()))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_only_a_learner_whose_rows_stand_alone_refuses_a_norm(algo: str, norm: str) -> None:
    """The steps leave out a norm that is refused: so that not every norm is, and those in one line."""
    config = metarun.compose([f"algo={algo}", "model=mlp", "model.hidden=[8,6]", f"model.norm={norm}", "recipe=absent"])
    kind = component_class(locate("algo", config.algo)).kinds[0]
    if norm in ROW_NORMS or not ("min_shots" in config.algo or kind == "control"):
        build_learner(config, DATASETS[kind], SPECS[kind].ways)
        return
    with pytest.raises(UserError, match=f"model.norm={norm}: must be one of none, layer"):
        build_learner(config, DATASETS[kind], SPECS[kind].ways)
