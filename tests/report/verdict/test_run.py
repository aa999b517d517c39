"""The verdict on one run: sentences of recorded facts, and none without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from helpers.report_folders import train_record, write_run

from metarun.report.read.runs import read_run
from metarun.report.verdict.judge import judge
from metarun.report.verdict.sentence import BATCH, CALIBRATED, CONVERGED, PUBLISHED, RESULT, STABLE
from metarun.report.write import write_report


def verdict(folder: Path, **run: Any) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for sentence in judge([read_run(write_run(folder / "run", **run))]):
        found.setdefault(sentence.question, []).append((sentence.tone, sentence.text))
    return found


def validations(means: np.ndarray) -> list[dict[str, Any]]:
    return [{"kind": "val", "step": 100 * (at + 1), "mean": float(m), "ci95": 0.01} for at, m in enumerate(means)]


def test_the_result_has_its_interval_and_what_it_is_without_adaptation(tmp_path: Path) -> None:
    first, second = verdict(tmp_path)[RESULT]
    interval = "test MSE 0.5000 ± 0.1000 after 3 adaptation steps (95 % interval over 4 test tasks)."
    assert first == ("plain", f"maml on sinusoid, 10-shot: {interval}")
    assert second == ("plain", "For scale: before adaptation it is 2.0000.")


def test_a_run_that_still_improves_and_one_that_does_not(tmp_path: Path) -> None:
    noise = 0.002 * np.random.default_rng(1).standard_normal(60)
    steps = 100.0 * np.arange(1, 61)
    (falling,) = verdict(tmp_path / "a", summary={"steps_done": 6000}, lines=validations(2 - 1e-4 * steps + noise))[
        CONVERGED
    ]
    assert falling[0] == "warn"
    assert falling[1].startswith("Not yet: the validation MSE still falls by 0.1 ± 0.0")
    assert falling[1].endswith("a thousand steps (95 %, 20 validations since step 4,100). Train longer.")
    flat = 2 * np.exp(-steps / 300) + noise
    (settled,) = verdict(tmp_path / "b", summary={"steps_done": 6000}, lines=validations(flat))[CONVERGED]
    assert settled[0] == "good"
    assert settled[1].startswith("The validation MSE is flat since step ")
    rising = verdict(tmp_path / "c", summary={"steps_done": 6000}, lines=validations(2 + 1e-4 * steps + noise))
    assert rising[CONVERGED][0][1].startswith("The validation MSE gets worse: ")
    assert rising[CONVERGED][0][1].endswith("The tested checkpoint is that of step 40, the best validation.")
    improving = verdict(
        tmp_path / "d", summary={"steps_done": 6000, "metric": "accuracy"}, lines=validations(1e-4 * steps + noise)
    )
    assert "still rises by " in improving[CONVERGED][0][1]
    assert " points a thousand steps" in improving[CONVERGED][0][1]


def test_a_schedule_that_ends_at_a_low_rate_is_named(tmp_path: Path) -> None:
    steps = 100.0 * np.arange(1, 61)
    lines = validations(2 * np.exp(-steps / 300)) + [train_record(s, lr=1e-3 / s) for s in (100, 6000)]
    found = verdict(tmp_path, summary={"steps_done": 6000}, lines=lines)[CONVERGED]
    assert found[-1][1].startswith("The outer rate ended at 1.7 % of its largest value")


def test_without_enough_validations_the_training_loss_answers(tmp_path: Path) -> None:
    few, loss = verdict(tmp_path, lines=[train_record(100 * k, loss=3.0 - 0.01 * k) for k in range(1, 41)])[CONVERGED]
    assert few[1].startswith("0 validations: a trend needs 8")
    assert "the training loss still falls by 0.01 ± " in loss[1]


def test_alarms_curvature_and_tasks_that_got_worse(tmp_path: Path) -> None:
    alarms = {"loss_spike": {"count": 3, "first": 10, "last": 30, "message": "the loss jumped"}}
    curvatures = ((10, 2.5, 0.01), (20, 0.5, 0.02))
    probes = [
        {"kind": "probe", "step": s, "rate_curvature_max": v, "outer_rate_curvature": w} for s, v, w in curvatures
    ]
    found = verdict(tmp_path, summary={"alarms": alarms}, lines=probes)[STABLE]
    assert found[0] == ("warn", "Alarm loss_spike, 3 times, first at step 10: the loss jumped")
    command = f"metarun job=analyze run={tmp_path / 'run'} analysis=remedy"
    assert found[1] == ("plain", f"Short trainings show whether what the alarms recommend helps: {command}")
    assert "at most 2.5 on the probe tasks (step 10), 0.5 at the end; above 2" in found[2][1]
    assert found[3][0] == "good"
    assert found[3][1].startswith("Outer rate x largest curvature: at most 0.02 on the probe tasks (step 20), 0.02 at")
    assert found[4] == ("good", "None of 4 test tasks has a worse MSE after adaptation than before it.")


def test_what_was_tried_against_alarms_stands_beside_them(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"alarms": {"loss_spike": {"count": 1, "first": 10, "message": "a jump"}}})
    results = folder / "analyses/remedy/results.json"
    results.parent.mkdir(parents=True)
    tried = "loss_spike: optim.lr=0.0003 helps\neach training: 20 steps, seed 0"
    results.write_text(json.dumps({"summary": {"message": tried}, "rows": []}))
    stable = [s.text for s in judge([read_run(folder)]) if s.question == STABLE]
    words = "Tried in short trainings: loss_spike: optim.lr=0.0003 helps; each training: 20 steps, seed 0."
    assert stable[1] == words


def test_adaptation_that_made_tasks_worse_is_counted(tmp_path: Path) -> None:
    scores = [[1.0, 1.0, 1.0, 1.0], [2.0, 0.5, 0.5, 1.0]]
    found = verdict(tmp_path, summary={"headline_step": 1}, scores=scores)[STABLE]
    assert found[-1] == ("warn", "1 of 4 test tasks (25 %) has a worse MSE after adaptation than before it.")


def test_the_published_value_is_named_with_the_settings_that_differ(tmp_path: Path) -> None:
    published = {"value": 0.55, "ci95": 0.05, "steps": [], "values": [], "source": "Someone 2017, table 1"}
    folder = write_run(tmp_path / "run", {"published": published, "steps_done": 20})
    (folder / ".hydra").mkdir()
    overrides = ["experiment=sinusoid/maml", "train.tasks=2", "seed=3", "device.threads=1"]
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    found = [s.text for s in judge([read_run(folder)]) if s.question == PUBLISHED]
    assert found == [
        "Someone 2017, table 1: 0.55 ± 0.05; this run agrees with it (difference within the intervals).",
        "The settings differ from those of the published row: train.tasks=2, 20 of 40 steps.",
    ]


def test_what_is_not_recorded_gives_no_sentence(tmp_path: Path) -> None:
    empty = dict.fromkeys(("mean", "curve", "alarms", "n_tasks", "published", "rewinds", "errors"))
    assert verdict(tmp_path, summary=empty, lines=[], scores=None) == {}


def test_the_verdict_stands_before_everything_else_and_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    page = write_report([write_run(tmp_path / "run", {"alarms": {evil: {"count": 1, "message": evil}}})]).read_text()
    assert page.index("Converged?") < page.index("Run card")
    assert "<script" not in page
    text = write_report([tmp_path / "run"], tmp_path / "r.md", "md").read_text()
    assert text.startswith("**Result** maml on sinusoid, 10-shot: test MSE 0.5000")
    assert "<script" not in text


def test_what_an_excess_risk_is_explained_by(tmp_path: Path) -> None:
    def sentence(name: str, **optimum: float) -> str:
        found = verdict(tmp_path / name, summary={"convergence": {"optimum": {"first": 1.0, **optimum}}}, lines=[])
        return " ".join(text for _, text in found.get(CONVERGED, []))

    noise = sentence("a", plateau=0.05, noise=0.048, floor=0.0, contraction=0.95, predicted_contraction=0.94)
    assert noise.startswith(
        "Excess risk over the best theta: 0.05, mean of the last half, 5 % of the 1 at the first record."
    )
    assert "The noise of the tasks at this rate accounts for 0.048: a lower rate or more tasks" in noise
    assert noise.endswith("measured 0.95, predicted 0.94 by gradient descent without noise.")
    assert "The learner's own fixed point has 0.04: it is biased" in sentence("b", plateau=0.05, floor=0.04)
    assert sentence("c", plateau=0.001, floor=0.0).endswith("0.1 % of the 1 at the first record.")


def test_whether_more_tasks_a_step_would_pay(tmp_path: Path) -> None:
    def sentence(name: str, low: float, high: float | None) -> str:
        scale = {"low": low, "high": high, "used": 25, "tasks": low}
        ((_, text),) = verdict(tmp_path / name, summary={"convergence": {"noise_scale": scale}})[BATCH]
        return text

    assert sentence("a", 225, None).endswith(
        "is at least 225 tasks (95 %, last half of the training): a step of 25 makes at most 10 % of what one without "
        "noise would. More (train.tasks) save steps."
    )
    assert "75 to 2,600 tasks" in sentence("b", 75, 2600)
    assert sentence("b", 75, 2600).endswith("is somewhat below it. More (train.tasks) save some steps.")
    assert "a step of 25 is within it" in sentence("c", 10, 40)
    assert "a step of 25 is above it" in sentence("d", 5, 12)
    assert sentence("e", 1.5, 2.5).endswith("a step of 25 has more than it needs. Fewer (train.tasks) save time.")


def test_whether_probabilities_may_be_taken_as_such_and_the_worst_tasks(tmp_path: Path) -> None:
    def sentence(name: str, over: float, error: float) -> tuple[str, str]:
        found = {"overconfidence": over, "overconfidence_ci95": 0.005, "error": error, "brier": 0.1, "brier_ci95": 0.01}
        (only,) = verdict(tmp_path / name, summary={"metric": "accuracy", "calibration": found})[CALIBRATED]
        return only

    high = ("warn", "Overconfident by 10.00 ± 0.50 points; calibration error 11.00 %, Brier score 0.1000 ± 0.0100. ")
    assert sentence("a", 0.1, 0.11) == (
        high[0],
        high[1] + "Probabilities are too high: a threshold on them lets too much pass.",
    )
    assert sentence("b", -0.1, 0.11)[1].endswith("Probabilities are too low.")
    assert sentence("c", 0.001, 0.01)[0] == "good"
    assert sentence("d", 0.001, 0.1)[1].endswith("Right on average, not at each confidence.")
    worst = {"share": 0.1, "mean": 0.7, "half": 0.02, "worst": 0.4}
    stable = verdict(tmp_path / "e", summary={"metric": "accuracy", "worst_tasks": worst})[STABLE]
    assert ("plain", "Worst tenth of the tasks: 70.00 ± 2.00 %, worst task: 40.00 %.") in stable
