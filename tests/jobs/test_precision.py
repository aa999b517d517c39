"""The precision of the test of a bfloat16 run, with and without instructions for it. The detection is mocked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import TINY

import metarun
from metarun.errors import SettingError
from metarun.training import experiment, final_test


def run(folder: Path, *settings: str) -> dict[str, Any]:
    summary = metarun.run(metarun.compose(settings), folder).summary
    return summary | {"scores": json.loads((folder / "test.json").read_text())["scores"]}


@pytest.mark.parametrize("emulated", [True, False])
def test_a_bfloat16_run_is_tested_in_float32_where_bfloat16_is_emulated(
    emulated: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By default; a precision that is typed is the one that is taken."""
    monkeypatch.setattr(final_test, "emulates_bfloat16", lambda device: emulated)
    source = tmp_path / "run"
    trained = run(source, *TINY, "device.precision=bfloat16")
    assert ("computes it in software" in caplog.text) == emulated
    caplog.clear()
    capsys.readouterr()
    tested = run(tmp_path / "default", "job=evaluate", f"run={source}")
    assert ("tested in float32 (trained in bfloat16)" in " ".join(capsys.readouterr().out.split())) == emulated
    assert "in software" not in caplog.text
    chosen = "float32" if emulated else "bfloat16"
    assert (trained["precision"], trained["test_precision"], tested["test_precision"]) == ("bfloat16", chosen, chosen)
    found = {
        setting: run(tmp_path / setting, "job=evaluate", f"run={source}", setting)
        for setting in ("device.precision=bfloat16", "test.precision=bfloat16", "device.precision=float32")
    }
    assert ("in software" in caplog.text) == emulated
    narrow, asked, wide = (summary["scores"] for summary in found.values())
    assert narrow == asked != wide
    assert trained["scores"] == tested["scores"] == (wide if emulated else narrow)
    assert found["test.precision=bfloat16"]["test_precision"] == "bfloat16"
    result = json.loads((tmp_path / "default/test.json").read_text())["result"]
    assert result["test_precision"] == chosen


def test_float64_is_tested_in_float64() -> None:
    with pytest.raises(SettingError, match=r"test\.precision=float32: must be auto where device\.precision=float64"):
        experiment.assemble(metarun.compose(["device.precision=float64", "test.precision=float32"]))
