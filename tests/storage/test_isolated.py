"""A logger that raises, hangs or is slow, in a thread of its own."""

from __future__ import annotations

import time

import pytest
from helpers.loggers import Strange, raising

from metarun.errors import SettingError, UserError
from metarun.storage.loggers import Record, isolated
from metarun.storage.loggers.isolated import IsolatedSink

RECORD = Record("train", 1, {"loss": 1.0}, {})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "START", 0.2)
    monkeypatch.setattr(isolated, "FINISH", 0.2)


@pytest.mark.parametrize("at", ["start", "log", "note", "finish"])
@pytest.mark.parametrize(
    "error", [ConnectionError("no\nroute"), KeyError(), SystemExit(1), UserError("logger=x: no store")]
)
def test_a_logger_that_raises_is_switched_off_with_one_note(at: str, error: BaseException) -> None:
    warnings: list[str] = []
    strange = Strange(at, raising(error))
    sink = IsolatedSink("x", strange, warnings.append)
    sink.start({})
    for _ in range(3):
        sink.log(RECORD)
        sink.note("a note")
        time.sleep(0.02)
    sink.finish({})
    assert len(warnings) == 1
    assert warnings[0].startswith("logger=x: ")
    assert warnings[0].endswith("; it is switched off; the run goes on, metrics.jsonl has every number")
    assert "\n" not in warnings[0]
    assert strange.calls[-1] == at  # and nothing after it


def test_a_logger_that_is_not_installed_is_refused() -> None:
    with pytest.raises(SettingError, match="is not installed"):
        IsolatedSink("x", Strange("start", raising(SettingError("logger", "x", "is not installed"))), print).start({})


@pytest.mark.parametrize("at", ["start", "log", "finish"])
def test_a_logger_that_hangs_is_left_behind(impatient: None, at: str) -> None:
    warnings: list[str] = []
    sink = IsolatedSink("x", Strange(at, lambda: time.sleep(60)), warnings.append)
    began = time.monotonic()
    sink.start({})
    for _ in range(1000):
        sink.log(RECORD)
    sink.finish({})
    assert time.monotonic() - began < 2
    assert len(warnings) == 1


def test_a_slow_logger_does_not_slow_the_run_and_gets_everything() -> None:
    warnings: list[str] = []
    strange = Strange("log", lambda: time.sleep(0.01))
    sink = IsolatedSink("x", strange, warnings.append)
    sink.start({})
    began = time.monotonic()
    for _ in range(50):
        sink.log(RECORD)
    assert time.monotonic() - began < 0.2
    sink.finish({})
    assert strange.calls == ["start", *50 * ["log"], "finish"]
    assert warnings == []


def test_what_does_not_fit_is_counted(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "WAITING", 5)
    warnings: list[str] = []
    sink = IsolatedSink("x", Strange("start", lambda: time.sleep(60)), warnings.append)
    sink.start({})
    for _ in range(20):
        sink.log(RECORD)
    sink.finish({})
    assert warnings[-1] == "logger=x: 16 calls were left out; metrics.jsonl has every number"
