"""What is said of an algorithm's class that lacks a member, or whose code cannot be batched."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from helpers.trainers import RecordingObserver

import metarun
from metarun.config.schema import Config
from metarun.errors import UserError
from metarun.training.experiment import assemble
from metarun.training.loop import train

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
    with pytest.raises(UserError, match=line + r".*\.item\(\)\); use torch\.where$"):
        train(trainer, trainer.start(), RecordingObserver())


def test_an_evaluation_names_them_too() -> None:
    experiment = assemble(settings("Branches"))
    with pytest.raises(UserError, match=r"Branches\.adapt \(wrong_algorithms\.py, line .*use torch\.where"):
        experiment.tester()(experiment.tested, experiment.initial_params())


def test_other_errors_of_the_code_keep_their_traceback() -> None:
    """They are told apart by torch's message, not by the class of the error."""
    experiment = assemble(settings("Ridge"))
    trainer = experiment.trainer()
    state = trainer.start()
    state.params["block0.weight"] = state.params["block0.weight"][:, :0]
    with pytest.raises(RuntimeError, match="Expected size"):
        train(trainer, state, RecordingObserver())
