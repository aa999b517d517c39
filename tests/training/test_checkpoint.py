"""Checkpoints that are damaged: cut off, with a flipped bit, of another program or another version."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import yaml
from helpers.runs import here

import metarun
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.checkpoint import digest, load

FLIPS = 300
CUTS = (0, 1, 100, 5000, 20000, -1)


def without_last_word(run: Path) -> tuple[Path, str, str]:
    """The last checkpoint, and the digests of what it holds and of what its predecessor does."""
    last = run / "checkpoints/last.pt"
    return last, digest(load(last)), digest(load(checkpoint.previous_checkpoint(last)))


def test_no_flipped_bit_in_a_checkpoint_goes_unnoticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It changes nothing that is read, or the predecessor is taken and that is told."""
    last, whole, before = without_last_word(run)
    content, draw, noticed = last.read_bytes(), random.Random(0), 0
    for _ in range(FLIPS):
        at = draw.randrange(len(content))
        last.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
        found, told = digest(load(last)), capsys.readouterr().err
        assert (found, bool(told)) in {(whole, False), (before, True)}
        noticed += bool(told)
    assert noticed > FLIPS / 10
    assert whole != before


def test_a_flipped_bit_in_a_weight_is_seen_by_the_checksum(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torch itself reads such a file without an error."""
    last, _, before = without_last_word(run)
    content, weight = last.read_bytes(), next(iter(load(last)["params"].values())).numpy().tobytes()[:16]
    at = content.index(weight)
    last.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert digest(load(last)) == before
    assert capsys.readouterr().err == (
        f"{last.parent}: last.pt is damaged (a checksum is wrong); last.pt.previous of step 15 is used instead\n"
    )


@pytest.mark.parametrize("length", CUTS)
def test_a_cut_off_checkpoint_gives_way_to_its_predecessor(length: int, run: Path, ended: Path) -> None:
    last, _, before = without_last_word(run)
    last.write_bytes(last.read_bytes()[:length])
    assert digest(load(last)) == before
    (run / "summary.json").unlink()
    here(run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == (ended / "metrics.jsonl").read_bytes()


def rewritten(path: Path, **changes: object) -> None:
    stored = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in (stored | changes).items() if v is not None}, path)


def test_a_checkpoint_of_the_first_format_is_read(run: Path) -> None:
    last, whole, _ = without_last_word(run)
    rewritten(last, format=1, sha256=None)
    assert digest(load(last) | {"format": checkpoint.FORMAT}) == whole


def test_a_checkpoint_of_a_later_format_is_refused_and_not_passed_over(run: Path) -> None:
    last = run / "checkpoints/last.pt"
    for writer, needed in (("4.1.0", "metarun 4.1.0 wrote it: that version or a later one reads it"),
                           (None, "install a later one")):  # fmt: skip
        rewritten(last, format=9, metarun=writer)
        has = rf"last\.pt: has format 9; this metarun \(0\.1\.0\) reads up to 2; {needed}"
        with pytest.raises(metarun.UserError, match=has):
            load(last)


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], torch.zeros(3), {"format": "pt"}])
def test_a_file_of_another_program_is_no_checkpoint(foreign: object, run: Path) -> None:
    last = run / "checkpoints/last.pt"
    torch.save(foreign, last)
    checkpoint.previous_checkpoint(last).unlink()
    with pytest.raises(metarun.UserError, match=r"last\.pt is no checkpoint of metarun, last\.pt\.previous is missing"):
        load(last)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or not of metarun .it lacks the settings of algo, data, train"),
        (b"algo: [1", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"model: resnet\nepochs: 3\n", "is damaged, or not of metarun"),
        (b"algo: {}\ndata: {}\n", "is damaged, or not of metarun .it lacks the settings of train"),
    ],
)
def test_settings_that_are_damaged_or_of_another_program(content: bytes, message: str, run: Path) -> None:
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(metarun.UserError, match=f"config.yaml: {message}") as caught:
        RunFolder(run).read_config()
    assert "\n" not in str(caught.value)


def test_settings_of_a_later_version_are_refused_by_name(run: Path) -> None:

    stored = yaml.safe_load((run / "config.yaml").read_text())
    stored["train"]["teleport"] = True
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    typed = [f"resume={run}"]
    with pytest.raises(metarun.UserError, match=r"its settings are not those of this version .*teleport"):
        metarun.compose(typed)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["summary.json", "timing.jsonl"])
def test_a_damaged_summary_or_timing_costs_nothing(name: str, content: bytes, run: Path, ended: Path) -> None:
    (run / "summary.json").unlink()
    (run / name).write_bytes(content)
    here(run, resume=True)
    for same in ("metrics.jsonl", "test.json"):
        assert (run / same).read_bytes() == (ended / same).read_bytes()


def test_damaged_records_are_dropped_and_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(True)
    lines[1], lines[3] = b"\xff\x00\n", b"[3]\n"
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    (run / "summary.json").unlink()
    here(run, resume=True)
    assert f"{run}/metrics.jsonl: 2 damaged lines were dropped" in capsys.readouterr().err
    assert len(RunFolder(run).read_records()) == len(lines) - 2


def test_a_run_tested_with_the_predecessor_of_its_best_checkpoint_says_which_that_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(tmp_path / "run", "optim.lr=1e-4")
    run = RunFolder(tmp_path / "run")
    assert run.read_summary()["best_step"] == load(run.best)["step"] > 5
    run.best.write_bytes(b"")
    (run.path / "summary.json").unlink()
    result = here(run.path, resume=True)
    assert "best.pt is damaged" in capsys.readouterr().err
    assert result.summary["best_step"] == load(checkpoint.previous_checkpoint(run.best))["step"]
