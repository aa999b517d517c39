"""job=data: decodes, verifies and describes a data set."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.colours import class_folders
from PIL import Image

import metarun
from metarun.data.pixels import Pixels
from metarun.errors import SettingError, UserError
from metarun.training.experiment import build_dataset
from metarun.types import EpisodeSpec

CLASSES = [f"class{i}" for i in range(10)]
SIZE = ["data.image_size=16", "data.ways=3", "data.shots=2", "data.queries=3"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def prepare(tmp_path: Path, *more: str) -> Path:
    config = metarun.compose(["job=data", "data=folder", f"data.root={tmp_path / 'images'}", *SIZE, *more])
    result = metarun.run(config, tmp_path / "out")
    assert (result.status, result.objective) == ("completed", 1e9)
    return tmp_path / "out"


def test_it_prints_the_contents_of_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(tmp_path / "images", CLASSES, each=5)
    class_folders(tmp_path / "images", CLASSES[:1], each=7)
    out = prepare(tmp_path)
    described = json.loads((out / "dataset.json").read_text())
    assert {split: part["classes"] for split, part in described["parts"].items()} == {"train": 4, "val": 3, "test": 3}
    assert sum(part["images"] for part in described["parts"].values()) == described["images"] == 52
    assert sorted(n for names in json.loads((out / "split.json").read_text()).values() for n in names) == CLASSES
    shown = capsys.readouterr().out
    assert "data set: folder, layout: class folders (CLASS/image), split ratio" in shown
    assert "5 to 7" in shown
    assert described["cache"] in shown
    assert str(out / "contact.png") in shown


def test_the_contact_sheet_shows_the_first_training_episodes(tmp_path: Path) -> None:
    """Three episodes of three rows; two support and three query columns of 48 pixels (16, shown threefold)."""
    class_folders(tmp_path / "images", CLASSES, each=5)
    config = metarun.compose(["job=data", "data=folder", f"data.root={tmp_path / 'images'}", *SIZE])
    out = prepare(tmp_path, "data.normalize=imagenet")
    sheet = np.asarray(Image.open(out / "contact.png"))
    assert sheet.shape == (3 * (3 * 50 + 2) + 2 * 12, (2 * 50 + 2) + 12 + (3 * 50 + 2), 3)
    task = build_dataset(config).episodes("train", 0, 0, range(3), EpisodeSpec(3, 2, 3))
    first = Pixels(16, 3, "lanczos").to_bytes(task.support.x[0, 0]).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(sheet[2:50:3, 2:50:3], first)
    last = Pixels(16, 3, "lanczos").to_bytes(task.query.x[2, -1]).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(sheet[-50:-2:3, -50:-2:3], last)


def test_bytes_that_changed_behind_its_back_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Time stamp and size as before: only summing them all tells."""
    class_folders(tmp_path / "images", CLASSES, each=5)
    prepare(tmp_path)
    (cache,) = (tmp_path / "cache").glob("*.u8")
    sound, stat = cache.read_bytes(), cache.stat()
    cache.write_bytes(sound[:100] + bytes([sound[100] ^ 1]) + sound[101:])
    os.utime(cache, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    prepare(tmp_path)
    assert "the decoded images are damaged" in capsys.readouterr().err
    assert cache.read_bytes() == sound


def write_deep(tmp_path: Path, largest: int) -> None:
    """Images of 16 bits whose numbers are 0 to `largest`, of ten classes."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            values = rng.integers(0, largest + 1, (16, 16)).astype(np.uint16)
            values[0, 0] = largest
            Image.fromarray(values).save(tmp_path / "images" / name / f"{i}.png")


def test_numbers_of_sixteen_bits_are_read_by_their_largest_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_deep(tmp_path, 255)
    described = json.loads((prepare(tmp_path) / "dataset.json").read_text())
    assert (described["depth"], described["flat"]) == (8, 0)
    assert described["values"]["mean"] == pytest.approx(0.5, abs=0.02)
    assert described["values"]["deviation"] == pytest.approx(12**-0.5, abs=0.02)
    assert (described["values"]["min"], described["values"]["max"]) == (0, 1)
    shown = capsys.readouterr().out
    assert "files of 16 bits: read as 8 bits, by their largest value 255 (data.depth sets it)" in shown
    assert "values, before data.normalize: 0.000 to 1.000, mean 0.5" in shown


def test_images_without_contrast_are_named_and_refused_where_there_are_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_deep(tmp_path, 255)
    with pytest.raises(UserError, match=r"every image is of one colour, as class0/0.png; nothing can be learned"):
        prepare(tmp_path, "data.depth=16")
    Image.new("L", (16, 16), 200).save(tmp_path / "images/class3/2.png")
    prepare(tmp_path)
    assert "warning: 1 image of one colour, as class3/2.png" in capsys.readouterr().out


def test_what_is_passed_over_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, names in (("training", CLASSES[:5]), ("dev", CLASSES[5:8])):
        class_folders(tmp_path / "images" / split, names, each=5)
    class_folders(tmp_path / "images", ["testing"], each=2)
    (tmp_path / "images/testing/1.heic").write_text("")
    prepare(tmp_path)
    shown = capsys.readouterr().out
    assert "layout: split folders (SPLIT/CLASS/image), split given" in shown
    assert "passed over: 2 images that no class has, as testing/000.png, testing/001.png" in shown
    assert "passed over: files that are no images: 1 .heic" in shown


def test_few_classes_are_described_whatever_the_ways(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", CLASSES, each=5)
    sheet = np.asarray(Image.open(prepare(tmp_path, "data.ways=5") / "contact.png"))
    assert sheet.shape[0] == 3 * (4 * 50 + 2) + 2 * 12  # the four training classes


@pytest.mark.parametrize(
    ("ratios", "ways", "advice"),
    [
        (None, 5, "4 for train, 3 for val, 3 for test; 5 ways in each need 15 classes, and 10 are enough for data"),
        ([0.6, 0.2, 0.2], 3, "6 for train, 2 for val, 2 for test; data.ratios=[0.4,0.3,0.3] gives 4, 3 and 3"),
    ],
)
def test_ways_beyond_the_classes_of_a_split_are_answered_by_what_would_do(
    ratios: list[float] | None, ways: int, advice: str, tmp_path: Path
) -> None:
    class_folders(tmp_path / "images", CLASSES, each=5)
    config = metarun.compose(["data=folder", f"data.root={tmp_path / 'images'}", *SIZE])
    config.data.ratios = ratios
    with pytest.raises(SettingError) as refused:
        build_dataset(config).check("val", EpisodeSpec(ways, 1, 1))
    assert f"the 10 classes are divided into {advice}" in str(refused.value)


def test_a_generated_data_set_has_nothing_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=sinusoid is generated while training"):
        metarun.run(metarun.compose(["job=data"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_errors_of_the_episodes_have_the_whole_key_and_leave_no_files(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", CLASSES, each=5)
    for wrong in ("data.within=kind", "data.shots=99"):
        with pytest.raises(UserError, match=f"^{wrong}: "):
            prepare(tmp_path, wrong)
    assert not (tmp_path / "out/config.yaml").exists()
