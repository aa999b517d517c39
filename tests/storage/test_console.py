"""What the user sees."""

from __future__ import annotations

import io
import re
from math import nan
from typing import Any

import pytest
from rich.console import Console

from metarun.storage.headline import format_bounds
from metarun.storage.loggers import Record
from metarun.storage.loggers.console import LiveConsole, PlainConsole
from metarun.storage.loggers.tables import format_clock, format_plain, metrics_line, result_table

RUN: dict[str, Any] = {"steps": 100, "max_minutes": None, "step": 0, "metric": "accuracy"}
RUN |= {"title": "metarun: maml on omniglot", "folder": "outputs/x"}
SUMMARY: dict[str, Any] = {
    "status": "completed",
    "reason": "",
    "metric": "accuracy",
    "kind": "classification",
    "algo": "maml",
    "data": "omniglot",
    "ways": 5,
    "shots": 1,
    "test_queries": 15,
    "split": "vinyals",
    "norm": "batch",
    "episodes_sha256": "0123456789abcdef",
    "mean": 0.975,
    "ci95": 0.003,
    "n_tasks": 600,
    "headline_step": 3,
    "curve": [{"step": k, "mean": 0.2 + 0.05 * k, "ci95": 0.003, "loss": 1.6 - 0.1 * k} for k in range(11)],
    "steps_done": 100,
    "seconds": 61.0,
    "best_step": 80,
    "run_dir": "outputs/x",
}


def printed(summary: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(result_table(summary))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("metric", "mean", "ci95", "text"),
    [
        ("accuracy", 0.9771, 0.0027, "97.71 +- 0.27 %"),
        ("accuracy", 0.5, None, "50.00 %"),
        ("mse", 0.25, 0.05, "0.2500 +- 0.0500"),
        ("mse", None, None, "not finite"),
        ("mse", float("nan"), float("nan"), "not finite"),
        ("mse", 2.8e14, 5.5e14, "2.80e+14 +- 5.50e+14"),
    ],
)
def test_accuracies_are_printed_in_per_cent_and_errors_as_they_are(
    metric: str, mean: float, ci95: float | None, text: str
) -> None:
    assert format_plain(metric, mean, ci95) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3723, "1:02:03")])
def test_times_are_printed_as_a_clock_shows_them(seconds: float, text: str) -> None:
    assert format_clock(seconds) == text


def test_a_training_line_names_its_numbers() -> None:
    record = Record("train", 5, {"loss": 0.5, "grad_norm": 2.0}, {"tasks_per_second": 100.0, "seconds_left": 65.0})
    assert metrics_line(record, "mse") == "loss 0.5  grad_norm 2  100 tasks/s  1:05 left"


def test_the_table_shows_each_step_and_what_the_figure_was_measured_on() -> None:
    text = printed(SUMMARY)
    assert "test accuracy: 97.50 +- 0.30 % (95 % interval, 600 tasks) after 3 adaptation steps" in text
    for part in ("5-way 1-shot, 15 queries a class", "split vinyals", "norm batch", "episodes 0123456789ab"):
        assert part in text.replace("\n", " ")
    assert [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()] == [str(k) for k in range(11)]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.25, 0.5, "0.2500 to 0.5000"),
        (0.25, None, "0.2500 to infinity"),
        (None, None, "no interval"),
        (nan, nan, "no interval"),
    ],
)
def test_the_interval_of_a_median_has_its_bounds(low: float | None, high: float | None, words: str) -> None:
    assert format_bounds("mse", low, high) == words


def test_a_long_curve_is_thinned_but_keeps_its_ends_and_its_headline() -> None:
    curve = [{"step": k, "mean": 0.5, "ci95": 0.1, "loss": 1.0} for k in range(51)]
    text = printed({**SUMMARY, "curve": curve, "headline_step": 47})
    steps = [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert {"0", "47", "50"} <= set(steps)
    assert len(steps) <= 13


def test_an_interrupted_run_says_how_to_go_on_and_claims_no_test() -> None:
    text = printed({**SUMMARY, "status": "interrupted", "curve": None})
    assert "continue with: metarun resume=outputs/x" in text
    assert "test" not in text


def test_figures_that_are_not_finite_are_said_to_be() -> None:
    curve = [{"step": 0, "mean": None, "ci95": None, "loss": None}]
    assert "not finite" in printed({**SUMMARY, "curve": curve, "mean": None, "ci95": None, "headline_step": 0})


def test_an_error_that_is_not_finite_adds_no_column_of_losses() -> None:
    finite, failed = ({"step": k, "mean": v, "ci95": v, "loss": v} for k, v in enumerate((0.5, nan)))
    assert "query loss" not in printed({**SUMMARY, "metric": "mse", "curve": [finite, failed], "headline_step": 0})


ERRORS: dict[str, Any] = {
    "median": 0.2031, "median_low": 0.1802, "median_high": 0.231, "iqm": 0.21, "iqm_half": 0.01, "failed": 31,
    "not_finite": 0, "tail_index": 1.6, "tail_error": 0.3, "heavy": True,
}  # fmt: skip
REGRESSION: dict[str, Any] = {
    **SUMMARY,
    "kind": "regression",
    "metric": "mse",
    "mean": 0.485,
    "ci95": 0.07,
    "errors": ERRORS,
    "headline": "median",
    "curve": [
        {"step": k, "mean": 0.5, "ci95": 0.1, "loss": 0.5, "median": 0.2, "median_low": 0.1, "median_high": 0.3,
         "heavy": k == 3} for k in range(4)
    ],
}  # fmt: skip


def test_errors_with_a_heavy_tail_are_headed_by_their_median() -> None:
    text = printed(REGRESSION)
    assert "test mse: median 0.2031, 0.1802 to 0.2310 (95 % interval, 600 tasks) after 3 adaptation steps" in text
    beside = "interquartile mean 0.2100 +- 0.0100, 31 of 600 tasks failed, no interval for the mean 0.4850: "
    assert beside + "tail index 1.6 +- 0.3; below 2 a tail has no variance" in " ".join(text.split())
    assert [line.split()[1:] for line in text.splitlines() if line.strip()[:1] in ("2", "3")] == [
        ["0.5000", "+-", "0.1000", "0.2000", "0.1000", "to", "0.3000"],
        ["0.5000", "heavy", "tail", "0.2000", "0.1000", "to", "0.3000"],
    ]
    lost = printed({**REGRESSION, "mean": None, "ci95": None, "errors": {**ERRORS, "not_finite": 3}})
    assert "31 of 600 tasks failed, no mean: 3 of them have no finite error" in " ".join(lost.split())


def test_errors_with_a_light_tail_are_headed_by_their_mean() -> None:
    text = printed({**REGRESSION, "headline": "mean", "errors": {**ERRORS, "heavy": False}})
    assert "test mse: 0.4850 +- 0.0700 (95 % interval, 600 tasks)" in text
    beside = "median 0.2031 (0.1802 to 0.2310), interquartile mean 0.2100 +- 0.0100, 31 of 600 tasks failed"
    assert beside in " ".join(text.split())


def test_a_pipe_gets_plain_lines() -> None:
    console = Console(file=io.StringIO(), width=40)
    sink = PlainConsole(console, every=0)
    sink.start(RUN)
    sink.log(Record("train", 10, {"loss": 0.5}, {"seconds": 1.0}))
    sink.log(Record("val", 10, {"mean": 0.9, "ci95": 0.01, "improved": True}, {}))
    sink.finish(SUMMARY)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in text
    assert "step 10/100  loss 0.5\n" in text
    assert "step 10/100  val accuracy 90.00 +- 1.00 %  (best so far)\n" in text


def test_a_terminal_gets_a_live_view_that_ends_in_the_table() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    sink = LiveConsole(console)
    sink.start(RUN)
    sink.log(Record("train", 10, {"loss": 0.5}, {"seconds": 1.0}))
    sink.progress(10, 1.0)
    sink.log(Record("val", 10, {"mean": 0.9, "ci95": 0.01, "improved": True}, {}))
    sink.note("warning: something")
    sink.work("testing on 600 tasks", 50, 600)
    sink.finish(SUMMARY)
    shown = screen(console)
    assert shown[2].strip() == "step 10  val accuracy 90.00 +- 1.00 %  (best so far)"
    assert shown[3].strip() == "warning: something"
    assert not [line for line in shown if line.startswith(("starting", "training", "testing"))]  # the bar is gone
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "training" in text
    assert "10/100" in text
    assert "50/600" in text
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l") == 1  # the cursor is back
    assert "95 % interval" in text


def screen(console: Console) -> list[str]:
    """The lines of a terminal at the end: what it makes of moves to line ends, lines up and erased lines."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", console.file.getvalue()):  # type: ignore[attr-defined]
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r" or part.endswith("K"):
            lines[row] = ""
        elif part == "\x1b[1A":
            row -= 1
        elif not part.startswith("\x1b"):
            lines[row] += part
    return lines


@pytest.mark.parametrize(
    ("minutes", "step", "seconds", "share", "count"),
    [(None, 25, 50.0, 0.25, "25/100"), (2.0, 25, 60.0, 0.5, "25/100, at most 2:00"), (2.0, 75, 60.0, 0.75, "75/100, ")],
)
def test_the_bar_shows_what_ends_a_run_first(
    minutes: float | None, step: int, seconds: float, share: float, count: str
) -> None:
    sink = LiveConsole(Console(file=io.StringIO(), force_terminal=True))
    sink.start({**RUN, "max_minutes": minutes})
    sink.progress(step, seconds)
    (task,) = sink.bar.tasks
    sink.finish(SUMMARY)
    assert task.completed / task.total == pytest.approx(share)  # type: ignore[operator]
    assert task.fields["count"].startswith(count)


def test_a_narrow_terminal_breaks_no_hash_and_no_path() -> None:
    folder = "/a/long/path/to/the/outputs/of/a/run/in/a/folder/that/is/wider/than/a/terminal/of/80/columns"
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    LiveConsole(console).finish({**SUMMARY, "run_dir": folder, "split": "vinyals of a rather long name indeed"})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0123456789ab" in text
    assert f"run folder: {folder}\n" in text
    assert max(len(re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line)) for line in text.split("\n") if folder not in line) <= 80


def test_a_pipe_gets_a_line_of_other_work_now_and_then() -> None:
    console = Console(file=io.StringIO(), width=40)
    sink = PlainConsole(console, every=60)
    sink.start(RUN)
    for done in (0, 50, 100):
        sink.work("testing on 100 tasks", done, 100)
    sink.every = 0
    sink.work("testing on 100 tasks", 60, 100)
    assert console.file.getvalue().splitlines()[2:] == ["testing on 100 tasks ...", "testing on 100 tasks: 60 done"]  # type: ignore[attr-defined]


def test_the_end_says_which_alarms_were_raised_and_how_often() -> None:
    once = {"count": 1, "first": 400, "last": 400, "message": "the loss jumped"}
    often = {"count": 12, "first": 10, "last": 90, "message": "steps [grow]"}
    text = printed({**SUMMARY, "alarms": {"loss_spike": once, "unstable_inner_rate": often}})
    assert "alarm loss_spike: once, at step 400\n" in text
    assert "alarm unstable_inner_rate: 12 times, steps 10 to 90\n" in text
    assert f"metarun job=analyze run={SUMMARY['run_dir']} analysis=remedy\n" in text
    assert "alarm" not in printed({**SUMMARY, "alarms": {}})
    assert "alarm" not in printed(SUMMARY)
