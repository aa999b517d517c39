"""Recordings cut to windows: what they hold, and that none is of two recordings or overlaps another of an episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import metarun as command
from hypothesis import given, settings
from hypothesis import strategies as st

from metarun.data import from_recordings
from metarun.data.row_groups import Grouping
from metarun.data.rows import RowData
from metarun.data.windows import windows
from metarun.errors import SettingError, UserError
from metarun.types import EpisodeSpec, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
LENGTHS = (40, 53, 61, 40, 47)


def numbered(classes: int = 10, **settings: Any) -> RowData:
    """Five recordings a class; reading t of recording r is 1000 r + t, so that a window shows where it is from."""
    count = 5 * classes
    recordings = [1000.0 * r + np.arange(LENGTHS[r % 5]) for r in range(count)]
    return from_recordings(recordings, label=[r // 5 for r in range(count)], scale="none", **settings)


def test_every_query_has_its_recording_and_window() -> None:
    data, spec = numbered(length=4, stride=3), EpisodeSpec(2, 2, 3)
    names, drawn = data.query_names("train", 0, 1, range(20), spec), data.episodes("train", 0, 1, range(20), spec)
    for task, x in zip(names, drawn.query.x, strict=True):
        firsts = [divmod(int(first), 1000) for first in x[:, 0, 0]]
        assert task == [f"recording {recording}, window {start // 3}" for recording, start in firsts]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 12), st.booleans(), st.integers(0, 1000))
def test_windows_are_of_one_recording_of_the_split_and_do_not_overlap(
    length: int, stride: int, overlap: bool, step: int
) -> None:
    data, spec = numbered(length=length, stride=stride, overlap=overlap), EpisodeSpec(2, 3, 2)
    seen: dict[Split, set[int]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        data.check(split, spec)
        drawn = data.episodes(split, 0, step, range(4), spec)
        for t in range(4):
            rows = torch.cat([drawn.support.x[t], drawn.query.x[t]])[:, 0].long()
            assert torch.equal(rows, rows[:, :1] + torch.arange(length))  # readings in a row
            recordings = rows // 1000
            assert torch.equal(recordings, recordings[:, :1].expand_as(recordings))
            starts = rows[:, 0] % 1000
            assert not (starts % stride).any()
            readings = rows.flatten().tolist()
            if not overlap:
                assert len(set(readings)) == len(readings)
            assert len(set(rows[:, 0].tolist())) == 10  # never one window twice
            seen[split] |= set(recordings[:, 0].tolist())
            labels = torch.cat([drawn.support.y[t], drawn.query.y[t]])
            for label in range(2):
                assert len(set((recordings[labels == label, 0] // 5).tolist())) == 1
    assert len(set.union(*seen.values())) == sum(map(len, seen.values()))


def test_all_windows_are_there() -> None:
    data = numbered(length=10, stride=4)
    starts = [1000 * r + s for r in range(50) for s in range(0, LENGTHS[r % 5] - 9, 4)]
    assert sorted(data.x[:, 0, 0].int().tolist()) == starts
    assert data.facts()["windows"] == len(starts)
    assert data.facts()["window"] == {"length": 10, "stride": 4, "overlap": False}
    assert data.facts()["recordings"] == 50


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_a_forecast_has_the_readings_after_the_window(length: int, stride: int, horizon: int) -> None:
    recordings = [np.stack([1000.0 * r + np.arange(60), -1000.0 * r - np.arange(60)]) for r in range(10)]
    data = from_recordings(recordings, length=length, stride=stride, horizon=horizon, scale="none")
    assert (data.kind, data.input_shape(), data.outputs(1)) == ("regression", (2, length), 2 * horizon)
    drawn = data.episodes("train", 0, 0, range(3), EpisodeSpec(1, 3, 2))
    x, y = (torch.cat([drawn.support[i], drawn.query[i]], 1) for i in (0, 1))
    ahead = torch.arange(1, horizon + 1)
    assert torch.equal(y[..., :horizon], x[..., 0, -1:] + ahead)
    assert torch.equal(y[..., horizon:], x[..., 1, -1:] - ahead)
    for t in range(3):
        readings = torch.cat([x[t, :, 0], y[t, :, :horizon]], 1).flatten().tolist()
        assert len(set(readings)) == len(readings)
        assert len({reading // 1000 for reading in readings}) == 1
    names = ["next"] if horizon == 1 else [f"next{i}" for i in range(1, horizon + 1)]
    assert data.y_names == tuple(f"channel{c}_{name}" for c in range(2) for name in names)


def test_too_few_windows_without_overlaps_say_so() -> None:
    data = numbered(length=20, stride=1)
    with pytest.raises(SettingError) as error:
        data.check("train", EpisodeSpec(2, 5, 6))
    assert "data.overlap=true allows overlaps" in str(error.value)
    assert "that do not overlap" in str(error.value)
    numbered(length=20, stride=1, overlap=True).check("train", EpisodeSpec(2, 5, 6))


def read(path: Path, **given: Any) -> RowData:
    names = {name: name for name in ("label", "task", "split")}
    usual = {"length": 4, "stride": None, "horizon": 1, "overlap": False, "grouping": Grouping(scale="none")}
    return windows(str(path), **(names | usual | given))


def test_every_file_gives_the_windows_of_the_recordings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    recordings = [rng.normal(size=n).round(4) for n in (12, 8, 9, 12, 10, 8)]
    label = ["a", "a", "b", "b", "c", "c"]
    made = from_recordings(recordings, label=label, length=4, scale="none")
    cells = [[*map(str, r), *[""] * (12 - len(r))] for r in recordings]
    lines = [",".join(["label", *(f"t{t}" for t in range(12))])]
    lines += [",".join([c, *row]) for c, row in zip(label, cells, strict=True)]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    np.savez(tmp_path / "r.npz", *recordings, label=label)
    for name in ("r.csv", "r.npz"):
        data = read(tmp_path / name)
        assert torch.equal(data.x, made.x)
        assert data.facts() == made.facts()
    np.savez(tmp_path / "x.npz", x=np.ones((6, 2, 8)), label=label)
    assert read(tmp_path / "x.npz").input_shape() == (2, 4)
    assert read(tmp_path / "r.csv", label=None, task="label", length=3).facts()["tasks"] == dict.fromkeys(SPLITS, 1)


TABLES = {
    "r.csv, line 3: column t1 has no value, but a later one has; fill it first": "label,t0,t1,t2\na,1,2,3\nb,1,,3\n",
    "r.csv, line 3: column t1 holds 'x', which is no number": "label,t0,t1,t2\na,1,2,3\nb,1,x,3\n",
    "r.csv, line 3: has 1 readings, a window 2 (data.length); remove shorter": "label,t0,t1,t2\na,1,2,3\nb,1,,\n",
    "r.csv, line 3: column label is empty": "label,t0,t1,t2\na,1,2,3\n,1,2,3\n",
    "r.csv, line 2: has no columns of readings": "label\na\n",
}


@pytest.mark.parametrize("message", TABLES)
def test_each_wrong_table_gets_a_line(tmp_path: Path, message: str) -> None:
    (tmp_path / "r.csv").write_text(TABLES[message])
    with pytest.raises(UserError) as error:
        read(tmp_path / "r.csv", length=2)
    assert message in str(error.value)


MISTAKES = {
    "length=None: set it to the readings of a window": {"length": None},
    "stride=0: must be at least 1": {"stride": 0},
    "horizon=0: must be at least 1, the readings to forecast": {"horizon": 0, "label": None},
    "from_recordings, recording 1: has the shape [2, 9]; it must be [L], or": {
        "recordings": [np.ones(9), np.ones((2, 9))],
        "label": [0, 1],
    },
    "from_recordings: has 2 recordings and 3 of label": {"recordings": [np.ones(9)] * 2, "label": [0, 1, 2]},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_each_mistake_gets_a_line(message: str) -> None:
    usual: dict[str, Any] = {"recordings": [np.ones(9)] * 3, "label": [0, 1, 2], "length": 3}
    with pytest.raises(UserError) as error:
        from_recordings(**(usual | MISTAKES[message]))
    assert message in str(error.value)


def test_the_command_trains_and_describes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    waves = [np.sin(np.arange(60) * (0.2 + 0.1 * (r // 3)) + rng.uniform(0, 6)) for r in range(45)]
    np.savez(tmp_path / "waves.npz", *waves, label=np.arange(45) // 3)
    tiny = ["train.steps=3", "train.tasks=2", "train.eval_every=3", "val.tasks=2", "test.tasks=3", "report=false"]
    sizes = ["data=windows", "data.file=waves.npz", "data.length=20", "data.ways=2", "data.shots=2", "data.queries=2"]
    done = command(*sizes, "data.test_queries=2", *tiny, "device.compile=off", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "inputs signals 1x20 z-scored on 9 training classes, each channel" in done.stdout
    shown = command("job=data", *sizes, cwd=tmp_path)
    assert "windows a class" in shown.stdout
    assert "45 recordings, windows of 20 readings every 20" in shown.stdout


def test_windows_of_a_forecast_share_no_reading_by_default() -> None:
    """length + horizon readings from one window to the next: 600 readings hold 10 windows of 50 and 10."""
    signals = [np.arange(600.0) + 1000 * r for r in range(6)]
    data = from_recordings(signals, length=50, horizon=10, scale="none")
    assert data.groups.counts.tolist() == [[10]] * 6
    assert data.facts()["windows"] == 60
