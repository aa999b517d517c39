"""train.on_nonfinite=rewind: where a run goes back to, what it goes on with, and when it gives up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bad_steps import bad
from helpers.runs import TINY, here

import metarun
from metarun.config.schema import check
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.experiment import assemble
from metarun.training.loop import train
from metarun.training.recorder import SilentObserver
from metarun.training.run import State, Trainer

REWIND = "train.on_nonfinite=rewind"
CASES = {
    "adam": ["optim.schedule=cosine"],
    "momentum": ["optim=sgd", "optim.lr=0.01", "optim.momentum=0.9"],
    "scheduled": ["reg=prox_l2", "reg.schedule=linear", "reg.final_weight=0.5", "reg.warmup=3"],
    "learned": ["reg=[prox_l2,l1]", "reg.prox_l2.learned=true", "reg.l1.method=prox", "reg.l1.weight=1e-3"],
}


class Until(SilentObserver):
    """Stops a run at a step; notes what it was told, and a scheduled weight after each step."""

    def __init__(self, step: int = 10**9) -> None:
        super().__init__()
        self.last, self.notes, self.weights, self.done = step, [], {}, 0

    def on_step(self, state: State) -> None:
        self.done = state.step
        scalars = {k: float(v) for k, v in state.params.items() if not v.ndim}
        self.weights[state.step] = {k: v for k, v in scalars.items() if k.endswith(".weight")}

    def notify(self, message: str) -> None:
        self.notes.append(message)

    def stop_requested(self) -> bool:
        return self.done >= self.last


def trainer_of(*overrides: str) -> Trainer:
    return assemble(metarun.compose([*TINY, *overrides])).trainer()


def held(state: State) -> str:
    return checkpoint.digest([state.params, state.optimizer.state_dict(), state.step])


@pytest.mark.parametrize(
    ("case", "at", "point"),
    [
        ("scheduled", (7,), 5),
        ("adam", (6, 9), 5),
        ("adam", (1,), 0),
        *(pytest.param(case, (7,), 5, marks=pytest.mark.long) for case in ("adam", "momentum", "learned")),
        pytest.param("adam", (5,), 5, marks=pytest.mark.long),
    ],
)
def test_a_rewind_is_a_run_from_the_last_point_with_the_number_of_the_step_moved(
    case: str, at: tuple[int, ...], point: int
) -> None:
    """Checkpoints every 5 steps: after bad ones up to s it is the run of 5 floor(s/5), and goes on with s + 1."""
    expected = trainer_of(*CASES[case])
    state = expected.start()
    if point:
        train(expected, state, Until(point))
    assert state.step == point
    state.step = at[-1] + 1
    reference = Until()
    train(expected, state, reference)

    tried, observer = trainer_of(REWIND, *CASES[case], *bad(*at)), Until()
    found = tried.start()
    assert train(tried, found, observer) == "completed"
    assert held(found) == held(state)
    assert observer.notes == [
        f"went back to the meta-parameters of step {point} ({n} of 3 times): "
        f"non-finite loss or meta-gradient at step {step}, task 1, seed 0"
        for n, step in enumerate(at, start=1)
    ]
    after = {s: w for s, w in observer.weights.items() if s > at[-1] + 1}
    assert after == {s: reference.weights[s] for s in after}


def test_scheduled_weights_are_those_of_the_step_also_where_it_was_refused() -> None:
    plain, rewound = Until(), Until()
    for observer, more in ((plain, []), (rewound, [REWIND, *bad(7, 8)])):
        trainer = trainer_of(*CASES["scheduled"], *more)
        train(trainer, trainer.start(), observer)
    assert rewound.weights == plain.weights
    assert len({tuple(w.values()) for w in plain.weights.values()}) > 10


def kept(folder: Path) -> dict[str, Any]:
    """What a run leaves, clocks aside."""
    record = RunFolder(folder)
    last, summary = checkpoint.load(record.last), record.read_summary()
    facts = {k: summary.get(k) for k in ("status", "rewinds", "steps_done", "best_step", "mean", "params_sha256")}
    names = [k for k in ("metrics.jsonl", "test.json") if (folder / k).exists()]
    digest = checkpoint.digest({k: last[k] for k in ("params", "optimizer", "step", "rewinding")})
    return facts | {"last": digest} | {k: (folder / k).read_bytes() for k in names}


@pytest.mark.parametrize(
    ("ended", "bad_steps"), [(6, (7, 8)), (9, (9, 12)), pytest.param(7, (7, 8), marks=pytest.mark.long)]
)
def test_a_run_stopped_at_any_step_goes_back_to_the_same_point(
    ended: int, bad_steps: tuple[int, ...], tmp_path: Path
) -> None:
    """A signal leaves a checkpoint between the rewind points, before, at and after a rewind; same bits at the end."""
    whole = here(tmp_path / "whole", REWIND, *bad(*bad_steps))
    assert (whole.status, whole.summary["rewinds"]) == ("completed", 2)
    first = here(tmp_path / "parts", REWIND, *bad(*bad_steps, ended=ended))
    assert (first.status, first.summary["steps_done"]) == ("interrupted", ended + 1)
    here(tmp_path / "parts", REWIND, *bad(*bad_steps), resume=True)
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")


def test_after_three_rewinds_to_one_point_the_run_ends_in_one_line(tmp_path: Path) -> None:
    result = here(tmp_path / "run", REWIND, *bad(6, 7, 8, 9))
    assert (result.status, result.summary["rewinds"], result.summary["steps_done"]) == ("diverged", 3, 9)
    assert result.summary["reason"] == (
        "non-finite loss or meta-gradient at step 9, task 1, seed 0, after 3 rewinds to step 5 with none past it; "
        f"the last good checkpoint is {tmp_path}/run/checkpoints/last.pt"
    )


def test_a_new_point_begins_the_count_anew(tmp_path: Path) -> None:
    result = here(tmp_path / "run", REWIND, *bad(6, 7, 8, 11, 12, 13))
    assert (result.status, result.summary["rewinds"]) == ("completed", 6)


def test_the_count_goes_on_in_a_resumed_run(tmp_path: Path) -> None:
    here(tmp_path / "run", REWIND, *bad(6, 7, ended=7))
    result = here(tmp_path / "run", REWIND, *bad(6, 7, 8, 9), resume=True)
    assert (result.status, result.summary["rewinds"]) == ("diverged", 3)


def test_a_step_that_was_refused_leads_to_no_new_point() -> None:
    """A checkpoint after every step: without this rule the count would begin anew each time, and never end."""
    trainer, observer = trainer_of(REWIND, "train.checkpoint_every=1", *bad(*range(4, 20))), Until()
    with pytest.raises(metarun.errors.NonFinite, match="at step 7, task 1, seed 0, after 3 rewinds to step 4"):
        train(trainer, trainer.start(), observer)
    assert len(observer.notes) == 3


def test_a_step_too_long_leads_to_no_new_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite gradient that leaves infinite weights at step 5, where a point would be."""
    trainer, state = trainer_of(REWIND), None
    real = metarun.training.loop.apply_update

    def too_long(optimizer: Any, params: Any, gradient: Any, lr: float) -> None:
        real(optimizer, params, gradient, lr)
        if state.step == 4:
            next(iter(params.values())).fill_(float("inf"))

    monkeypatch.setattr(metarun.training.loop, "apply_update", too_long)
    state, observer = trainer.start(), Until()
    assert train(trainer, state, observer) == "completed"
    assert all(v.isfinite().all() for v in state.params.values())
    assert [note[:46] for note in observer.notes] == ["went back to the meta-parameters of step 0 (1 "]


def test_only_the_last_checkpoint_of_this_policy_holds_the_point(ended: Path, tmp_path: Path) -> None:
    here(tmp_path / "run", REWIND)
    holds = {
        (folder.name, name): "rewinding" in checkpoint.load(folder / f"checkpoints/{name}.pt")
        for folder in (ended, tmp_path / "run")
        for name in ("last", "best")
    }
    assert [key for key, found in holds.items() if found] == [("run", "last")]
    assert json.loads((ended / "summary.json").read_text())["rewinds"] == 0


def test_another_policy_leaves_the_point_out_again_and_a_checkpoint_without_one_is_a_point(run: Path) -> None:
    """Both ways of resume_allow=[train.on_nonfinite]."""
    here(run, REWIND, "train.steps=24", *bad(22), resume=True)
    stored = checkpoint.load(run / "checkpoints/last.pt")
    assert (stored["rewinding"]["step"], stored["rewinding"]["total"]) == (20, 1)
    here(run, "train.steps=26", resume=True)
    assert "rewinding" not in checkpoint.load(run / "checkpoints/last.pt")


@pytest.mark.parametrize("key", ["params", *(pytest.param(k, marks=pytest.mark.long) for k in ("optimizer", "total"))])
def test_a_damaged_point_is_no_checkpoint(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here(tmp_path / "run", REWIND)
    last = tmp_path / "run/checkpoints/last.pt"
    stored = torch.load(last, weights_only=True)
    stored.pop("sha256")
    del stored["rewinding"][key]
    torch.save(stored | {"sha256": checkpoint.digest(stored)}, last)
    assert checkpoint.load(last)["step"] == 15
    assert "last.pt is no checkpoint of metarun; last.pt.previous of step 15 is used instead" in capsys.readouterr().err


def test_other_policies_are_refused_by_name() -> None:
    with pytest.raises(metarun.UserError, match=r"^train.on_nonfinite=rewnd: choices: stop, skip, rewind$"):
        check(metarun.compose(["train.on_nonfinite=rewnd"]))
