"""train.average=ema: the average against its closed form, and who takes it: validation, test, checkpoints, rewinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bad_steps import bad
from helpers.quadratic import EXACT
from helpers.runs import TINY, here
from helpers.trainers import no_validation

import metarun
from metarun.config.schema import check
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.average import Average, evaluate_average, update_average
from metarun.training.evaluation import Evaluation
from metarun.training.experiment import assemble
from metarun.training.loop import train
from metarun.training.recorder import SilentObserver
from metarun.training.run import State
from metarun.types import MOMENTS, Params

EMA = ["train.average=ema", "train.average_decay=0.8"]


class Keeping(SilentObserver):
    """Keeps the meta-parameters after each step, and the validations."""

    def __init__(self) -> None:
        super().__init__()
        self.params: dict[int, Params] = {}
        self.found: dict[int, Evaluation] = {}

    def on_step(self, state: State) -> None:
        self.params[state.step] = {name: value.clone() for name, value in state.params.items()}

    def on_validation(self, state: State, evaluation: Evaluation, improved: bool) -> None:
        self.found[state.step] = evaluation


def trained(*overrides: str, **changes: Any) -> tuple[State, Keeping]:
    settings = metarun.compose([*TINY, "device.precision=float64", *overrides])
    trainer, kept = assemble(settings).trainer(), Keeping()
    for name, value in changes.items():
        object.__setattr__(trainer, name, value)
    state = trainer.start()
    train(trainer, state, kept)
    return state, kept


def weighted(values: list[torch.Tensor], decay: float) -> torch.Tensor:
    """sum_s (1 - d) d^(t-s) theta_s / (1 - d^t), s = 1 ... t."""
    t = len(values)
    weights = [(1 - decay) * decay ** (t - s) / (1 - decay**t) for s in range(1, t + 1)]
    assert sum(weights) == pytest.approx(1, rel=EXACT)
    return sum(w * v for w, v in zip(weights, values, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("decay", [0.8, 0.999])
def test_the_average_has_its_closed_form(decay: float) -> None:
    state, kept = trained("train.average=ema", f"train.average_decay={decay}", "optim.lr=0.01")
    assert state.average is not None
    assert (state.average.updates, len(kept.params)) == (20, 20)
    for name, value in state.average.params.items():
        expected = weighted([kept.params[s][name] for s in range(1, 21)], decay)
        torch.testing.assert_close(value, expected, rtol=EXACT, atol=EXACT)
        assert not torch.equal(value, state.params[name])


def test_the_first_average_is_the_first_iterate_and_a_copy_of_it() -> None:
    theta = {"w": torch.ones(2)}
    average = update_average(Average(), theta, 0.9)
    theta["w"].fill_(5)
    assert average.params["w"].tolist() == [1, 1]
    second = update_average(average, theta, 0.9)  # (0.9 x 1 + 5) / 1.9
    assert second.params["w"].tolist() == pytest.approx([5.9 / 1.9] * 2)
    assert average.params["w"].tolist() == [1, 1]


def test_training_itself_is_that_without_an_average() -> None:
    found, plain = trained(*EMA)[0], trained()[0]
    assert plain.average is None
    assert checkpoint.digest(found.params) == checkpoint.digest(plain.params)


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        (["algo=maml", "reg=prox_l2", "reg.schedule=linear", "reg.final_weight=0.5"], "reg."),
        (["algo=reptile", "algo.inner_optimizer=adam", "algo.moments=carried"], MOMENTS),
    ],
)
def test_what_the_outer_optimizer_does_not_move_is_that_of_the_last_step(overrides: list[str], left_out: str) -> None:
    state, _ = trained(*EMA, *overrides)
    assert state.average is not None
    others = state.params.keys() - state.average.params.keys()
    assert others
    assert all(name.startswith(left_out) for name in others)
    assert state.tested.keys() == state.params.keys()
    assert all(state.tested[name] is state.params[name] for name in others)


def test_a_learned_weight_of_a_penalty_is_averaged() -> None:
    state, _ = trained(*EMA, "reg=prox_l2", "reg.learned=true")
    assert state.average is not None
    assert any(name.startswith("reg.") for name in state.average.params)


def test_steps_left_out_are_no_updates_and_a_rewind_takes_the_average_back() -> None:
    skipped, kept = trained(*EMA, "train.on_nonfinite=skip", *bad(3, 4))
    assert skipped.average is not None
    assert skipped.average.updates == 18
    taken = [kept.params[s] for s in range(1, 21) if s not in (4, 5)]
    for name, value in skipped.average.params.items():
        torch.testing.assert_close(value, weighted([p[name] for p in taken], 0.8), rtol=EXACT, atol=EXACT)

    rewound, kept = trained(*EMA, "train.on_nonfinite=rewind", *bad(7))
    assert rewound.average is not None
    taken = [kept.params[s] for s in range(1, 21) if s not in (6, 7, 8)]  # back to step 5 after 6 and 7
    assert rewound.average.updates == len(taken) == 17
    for name, value in rewound.average.params.items():
        torch.testing.assert_close(value, weighted([p[name] for p in taken], 0.8), rtol=EXACT, atol=EXACT)


def test_the_best_checkpoint_is_that_of_the_average() -> None:
    """The error is the distance from the average of step 8: the iterates alone would choose another step."""
    _, kept = trained(*EMA, "optim.lr=0.05", "train.eval_every=1")
    name = next(iter(kept.params[1]))
    averages = {t: weighted([kept.params[s][name] for s in range(1, t + 1)], 0.8) for t in range(1, 21)}
    target = averages[8]

    def validate(params: Params) -> Evaluation:
        error = (params[name] - target).norm().expand(1, 2)
        return no_validation(params)._replace(losses=error, scores=error)

    iterates = {t: float((kept.params[t][name] - target).norm()) for t in kept.params}
    assert min(iterates, key=iterates.__getitem__) != 8
    state, found = trained(*EMA, "optim.lr=0.05", "train.eval_every=1", validate=validate)
    assert state.best_step == 8
    assert state.best_error < 1e-9
    for step, evaluation in found.found.items():
        assert evaluation.unaveraged is not None
        assert evaluation.unaveraged.tolist() == pytest.approx([iterates[step]] * 2)


def test_without_an_average_nothing_is_scored_twice() -> None:
    calls = []

    def validate(params: Params) -> Evaluation:
        calls.append(params)
        return no_validation(params)

    theta = {"w": torch.ones(1)}
    assert evaluate_average(validate, theta, None).unaveraged is None
    assert len(calls) == 1


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged") / "run"
    here(folder, *EMA, "optim.lr=0.01")
    return folder


def stored_at(folder: Path, name: str = "last") -> dict[str, Any]:
    stored = checkpoint.load(folder / f"checkpoints/{name}.pt")
    return {k: v for k, v in stored.items() if k not in ("seconds", "spent")}


def drop_average(path: Path) -> None:
    stored = checkpoint.load(path)
    del stored["average"]
    torch.save(stored | {"sha256": checkpoint.digest(stored)}, path)


@pytest.mark.parametrize("spoilt", [(), (7, 13)], ids=["plain", "rewind"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(spoilt: tuple[int, ...], tmp_path: Path) -> None:
    more = [*EMA, "train.on_nonfinite=rewind"] if spoilt else EMA
    here(tmp_path / "whole", *more, *bad(*spoilt))
    # The signal comes in step 11, between two checkpoints.
    stopped = here(tmp_path / "parts", *more, *bad(*spoilt, ended=11))
    assert (stopped.status, stopped.summary["steps_done"]) == ("interrupted", 12)
    here(tmp_path / "parts", *more, *bad(*spoilt), resume=True)
    for name in ("last", "best"):
        parts, whole = (checkpoint.digest(stored_at(tmp_path / folder, name)) for folder in ("parts", "whole"))
        assert parts == whole
    for name in ("metrics.jsonl", "test.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_test_reports_the_average_and_the_weights_beside_it(averaged: Path, tmp_path: Path) -> None:
    """The weights alone, by an evaluation of the same checkpoint without its average."""
    summary, tested = RunFolder(averaged).read_summary(), json.loads((averaged / "test.json").read_text())
    again = metarun.run(metarun.compose(["job=evaluate", f"run={averaged}"]), tmp_path / "again")
    assert (again.summary["mean"], again.summary["unaveraged"]) == (summary["mean"], summary["unaveraged"])
    assert again.summary["params_sha256"] == summary["params_sha256"]

    plain = tmp_path / "plain"
    shutil.copytree(averaged, plain)
    drop_average(plain / "checkpoints/best.pt")
    alone = metarun.run(metarun.compose(["job=evaluate", f"run={plain}"]), tmp_path / "alone")
    assert alone.summary["unaveraged"] is None
    found = summary["unaveraged"]
    assert (found["mean"], found["ci95"]) == (alone.summary["mean"], alone.summary["ci95"])
    assert found["mean"] != summary["mean"]
    assert found["difference"] == pytest.approx(summary["mean"] - alone.summary["mean"], rel=1e-5)
    row = tested["steps"].index(summary["headline_step"])
    gains = torch.tensor(tested["scores"][row]) - torch.tensor(tested["unaveraged"])
    assert found["difference_ci95"] == pytest.approx(1.96 * float(gains.std()) / len(gains) ** 0.5, rel=1e-5)
    assert found["wins"] == pytest.approx(float((gains < 0).float().mean()))


def test_validation_records_have_the_metric_of_the_weights_beside_it(averaged: Path) -> None:
    records = [r for r in RunFolder(averaged).read_records() if r["kind"] == "val"]
    experiment = assemble(metarun.compose([*TINY, *EMA]))
    stored = checkpoint.load(averaged / "checkpoints/last.pt")
    assert records[-1]["unaveraged"] == experiment.trainer().validate(stored["params"]).mean
    assert records[-1]["mean"] == experiment.trainer().validate(stored["params"] | stored["average"]["params"]).mean


def test_what_else_loads_a_run_takes_the_average(averaged: Path) -> None:
    params = assemble(metarun.compose([*TINY, *EMA])).initial_params()
    checkpoint.restore_params(averaged / "checkpoints/best.pt", params)
    stored = checkpoint.load(averaged / "checkpoints/best.pt")
    assert checkpoint.digest(params) == checkpoint.digest(stored["params"] | stored["average"]["params"])
    assert checkpoint.digest(params) != checkpoint.digest(stored["params"])


def test_an_average_cannot_be_added_unasked_and_begins_then_where_the_run_goes_on(run: Path) -> None:
    with pytest.raises(metarun.UserError, match=r"^train.average=ema: cannot change in resume=") as caught:
        metarun.compose([f"resume={run}", "train.average=ema"])
    assert "\n" not in str(caught.value)
    here(run, *EMA, "train.steps=23", resume=True)  # as resume_allow does
    assert checkpoint.load(run / "checkpoints/last.pt")["average"]["updates"] == 3


@pytest.mark.parametrize("key", ["params", "updates"])
def test_a_damaged_average_is_no_checkpoint(key: str, averaged: Path, tmp_path: Path) -> None:
    shutil.copytree(averaged, tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.pt"
    stored = checkpoint.load(last)
    stored["average"][key] = {"w": torch.zeros(1)} if key == "params" else -1
    torch.save(stored | {"sha256": checkpoint.digest(stored)}, last)
    assert checkpoint.load(last)["step"] == 15


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.average=sma", "train.average=sma: choices: none, ema"),
        ("train.average_decay=1", "train.average_decay=1.0: must be above 0 and below 1"),
        ("train.average_decay=0", "train.average_decay=0.0: must be above 0 and below 1"),
    ],
)
def test_wrong_settings_are_one_line(override: str, message: str) -> None:
    with pytest.raises(metarun.UserError) as caught:
        check(metarun.compose([override]))
    assert str(caught.value) == message
