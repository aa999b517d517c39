"""What is said of an algorithm's class that lacks a member, or whose code cannot be batched."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from helpers.trainers import RecordingObserver

import metarun
from metarun.config.schema import Config
from metarun.errors import UserError
from metarun.training.experiment import assemble
from metarun.training.loop import train
from metarun.training.own_algorithm import explain_errors
from metarun.types import Batch

WRONG = "helpers.wrong_algorithms"


def settings(name: str) -> Config:
    config = metarun.compose(["train.steps=1", "train.tasks=2", "val.tasks=2", "device.compile=off", "recipe=absent"])
    return replace(config, algo={"_target_": f"{WRONG}.{name}"}, trusted_modules=["helpers"])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("NoKinds", f"algo._target_={WRONG}.NoKinds: NoKinds has no `kinds`; write kinds: ClassVar"),
        ("NoHead", f"algo._target_={WRONG}.NoHead: NoHead has no `head`; write head: ClassVar[bool] = True, or False"),
        ("NoTestSteps", "NoTestSteps has no `test_inner_steps`; write test_inner_steps: ClassVar[int] = 0"),
        (
            "unannotated",
            f"algo._target_={WRONG}.unannotated: does not say what it returns; write def unannotated(...) -> CLASS",
        ),
    ],
)
def test_a_missing_member_is_named_with_what_to_write(name: str, line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)) as error:
        assemble(settings(name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "Branches",
            r"^helpers\.wrong_algorithms\.Branches\.adapt \(wrong_algorithms\.py, line \d+: if support\.x",
        ),
        ("TakesNumber", r"^helpers\.wrong_algorithms\.TakesNumber\.meta_grad \(wrong_algorithms\.py, line \d+: return"),
    ],
)
def test_code_that_depends_on_a_value_is_named_with_its_line(name: str, line: str) -> None:
    """In training, and where a run is only evaluated."""
    experiment = assemble(settings(name))
    trainer = experiment.trainer()
    with pytest.raises(UserError, match=line + r".*\.item\(\), one_hot\); use torch\.where, or .*torch\.arange$"):
        train(trainer, trainer.start(), RecordingObserver())


def test_an_evaluation_names_them_too() -> None:
    experiment = assemble(settings("Branches"))
    with pytest.raises(UserError, match=r"Branches\.adapt \(wrong_algorithms\.py, line .*use torch\.where"):
        experiment.tester()(experiment.tested, experiment.initial_params())


def test_other_errors_of_own_code_are_told_with_their_line() -> None:
    """They are no fault of metarun's, whose report would ask to be told of them."""
    experiment = assemble(settings("WrongShape"))
    trainer = experiment.trainer()
    line = (
        r"^helpers\.wrong_algorithms\.WrongShape\.adapt \(wrong_algorithms\.py, line \d+: return .*\): RuntimeError: "
    )
    with pytest.raises(UserError, match=line):
        train(trainer, trainer.start(), RecordingObserver())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("GradientAlone", r"must return a gradient and metrics, two dictionaries of tensors$"),
        ("LeavesOut", r"the gradient of block0\.shift is missing; it must be \[40\], as the parameter$"),
        ("NoLoss", r"its metrics lack `loss`; losses\.score_prediction returns them$"),
    ],
)
def test_what_meta_grad_returns_is_checked(name: str, line: str) -> None:
    experiment = assemble(settings(name))
    trainer = experiment.trainer()
    with pytest.raises(UserError, match=rf"^helpers\.wrong_algorithms\.{name}\.meta_grad: {line}"):
        train(trainer, trainer.start(), RecordingObserver())


def test_errors_of_metaruns_own_code_and_of_memory_are_not_explained() -> None:
    with pytest.raises(RuntimeError, match="other"), explain_errors(assemble(settings("Ridge")).algorithm):
        raise RuntimeError("other")
    ours = metarun.build_algorithm(metarun.compose(["train.steps=1"]))
    with pytest.raises(RuntimeError, match="shape"), explain_errors(ours):
        ours.adapt({k: v[:0] for k, v in ours.init(0).items()}, Batch(torch.zeros(3, 1), torch.zeros(3, 1)))
    with pytest.raises(MemoryError), explain_errors(TooLarge()):
        TooLarge().adapt()


class TooLarge:
    def adapt(self) -> None:
        raise MemoryError
