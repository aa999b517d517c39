"""The whole data set `image_folder`: what is said when images, archives, tables or the root are wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.folder_data import (
    CLASSES,
    FILES,
    FOLDERS,
    LAYOUTS,
    PARTS,
    dataset,
    digest,
    draw,
    listed,
    pickles,
    shown,
)
from helpers.image_files import KINDS, as_folder, as_tar, as_zip, attempt, refusal

from metarun.errors import SettingError
from metarun.types import EpisodeSpec, Split

pytestmark = pytest.mark.usefixtures("elsewhere")


# Images that cannot be decoded

DAMAGED = {
    "cut short": FILES["ox"]["ox_3.png"][:200],
    "empty": b"",
    "text": b"<html>Sign in to the network</html>",
    "a directory": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    """And nothing is kept of the attempt."""
    place = KINDS[kind](tmp_path / "place", {**FOLDERS, "train/ox/ox_3.png": DAMAGED[damage]})
    message = refusal(lambda: draw(dataset(place)))
    assert message.startswith(f"data.root={place}: train/ox/ox_3.png is not a readable image (")
    assert message.endswith("; data.on_corrupt=skip leaves such images out")
    assert not list((tmp_path / "cache").glob("*.u8"))
    assert not list((tmp_path / "cache").glob("*.json"))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_that_cannot_be_decoded_can_be_skipped_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Their class has fewer images, the others' episodes are as they were."""
    place = KINDS[kind](tmp_path / "place", {**FOLDERS, "train/ox/ox_3.png": b"", "train/yak/yak_0.png": b"x"})
    data = dataset(place, on_corrupt="skip")
    facts = data.facts()
    assert (facts["images"], facts["skipped"]) == (49, 2)
    assert "skipped: train/ox/ox_3.png is not a readable image" in capsys.readouterr().err
    counts = dict(zip(data.source.table.names, data.source.table.counts.tolist(), strict=True))
    assert counts == {label: len(files) for label, files in FILES.items()} | {"ox": 5, "yak": 4}
    seen = {name for _, name in shown(draw(data, spec=EpisodeSpec(4, 2, 2), tasks=60).query.x)}
    assert seen == {n for label in PARTS["train"] for n in FILES[label]} - {"ox_3.png", "yak_0.png"}
    sound = dataset(as_folder(tmp_path / "sound", FOLDERS))
    assert digest(data)["val"] == digest(sound)["val"]
    assert sound.facts()["skipped"] == 0
    again = dataset(place, on_corrupt="skip")
    assert again.facts() == facts


def test_a_class_without_one_image_that_can_be_decoded_is_named(tmp_path: Path) -> None:
    bad = {name: b"x" if name.startswith("val/cat/") else content for name, content in FOLDERS.items()}
    message = refusal(lambda: draw(dataset(as_folder(tmp_path / "place", bad), on_corrupt="skip")))
    assert "class cat has no image that can be decoded" in message


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, kind: str) -> None:
    """Wherever it is damaged; on_corrupt=skip is for images, not for this."""
    place = KINDS[kind](tmp_path / "place", FOLDERS)
    whole = place.read_bytes()
    for part in (0, 1, 2, 3):
        place.write_bytes(whole[: part * len(whole) // 3 - 8] if part else whole[:100])
        assert str(place) in refusal(lambda: draw(dataset(place, on_corrupt="skip")))
    middle = len(whole) // 2
    place.write_bytes(whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 3000]) + whole[middle + 3000 :])
    assert str(place) in refusal(lambda: draw(dataset(place, on_corrupt="skip")))


def test_an_image_larger_than_any_should_be_is_refused(tmp_path: Path) -> None:
    place = as_folder(tmp_path / "place", {**FOLDERS, "train/ox/ox_3.png": b""})
    os.truncate(place / "train/ox/ox_3.png", 2**26 + 1)
    message = refusal(lambda: draw(dataset(place)))
    assert "train/ox/ox_3.png" in message
    assert f"{2**26 + 1} bytes" in message


# What is asked for and is not there


@pytest.mark.parametrize("split", PARTS)
def test_a_class_with_too_few_images_is_named(tmp_path: Path, split: Split) -> None:
    label = PARTS[split][1]
    kept = {n: c for n, c in FOLDERS.items() if f"/{label}/" not in n or n.endswith(("_0.png", "_1.png"))}
    data = dataset(as_folder(tmp_path / "place", kept))
    data.check(split, EpisodeSpec(3, 1, 1))
    for spec, key in [
        (EpisodeSpec(3, 1, 2), "queries"),
        (EpisodeSpec(3, 2, 1), "shots"),
        (EpisodeSpec(9, 1, 1), "ways"),
    ]:
        with pytest.raises(SettingError) as caught:
            data.check(split, spec)
        assert caught.value.key == key
        assert key == "ways" or f"class {label}" in caught.value.expected


NOWHERE: dict[str, Callable[[Path], Path | str | None]] = {
    "no root": lambda tmp: None,
    "gone": lambda tmp: tmp / "gone",
    "gone, archive": lambda tmp: tmp / "gone.zip",
    "nobody's home": lambda tmp: "~nobody of this name/data",
    "empty": lambda tmp: as_folder(tmp / "place", {}),
    "no images": lambda tmp: as_folder(tmp / "place", {"a/1.txt": b"", "b/2.mat": b"", "data.csv": b"filename,label"}),
    "images only": lambda tmp: as_folder(tmp / "place", {"1.png": b"", "2.png": b""}),
    "hidden": lambda tmp: as_folder(tmp / "place", {".a/1.png": b"", ".b/1.png": b""}),
    "two pickles": lambda tmp: as_folder(tmp / "place", {k: v for k, v in pickles().items() if "val" not in k}),
    "two archives": lambda tmp: as_zip(as_zip(tmp / "place/a.zip", CLASSES).with_name("b.zip"), CLASSES).parent,
    "empty zip": lambda tmp: as_zip(tmp / "place.zip", {}),
    "empty tar": lambda tmp: as_tar(tmp / "place.tar", {}),
    "zeros": lambda tmp: as_folder(tmp, {"place.tar": bytes(20_000)}) / "place.tar",
}


@pytest.mark.parametrize("data", ["folder", "miniimagenet"])
@pytest.mark.parametrize("wrong", NOWHERE)
def test_a_root_without_images_is_one_line_that_names_what_is_read(tmp_path: Path, wrong: str, data: str) -> None:
    root = NOWHERE[wrong](tmp_path)
    message = refusal(lambda: draw(dataset(root, data)))
    assert message.startswith(f"data.root={root}: ")
    for layout in ("train, val, test", "train.csv", "a folder per class", "data.csv", "pickles", "zip, tar"):
        assert layout in message
    assert ("may not be redistributed" in message) == (data == "miniimagenet")


@pytest.mark.parametrize("content", [b"x", b"filename,label\n1.png,a\n", FILES["ox"]["ox_0.png"], b"PK\x03\x04 cut"])
def test_a_root_that_is_another_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "place").write_bytes(content)
    message = refusal(lambda: draw(dataset(tmp_path / "place")))
    assert message.startswith(f"data.root={tmp_path / 'place'}: ")
    assert "not a readable zip or tar archive" in message


def test_a_csv_that_is_not_there_is_named_as_it_was_typed(place: Path) -> None:
    as_folder(place, {"sub/table.csv": b""})
    message = refusal(lambda: draw(dataset(place, csv="tables.csv")))
    assert message.startswith("data.csv=tables.csv: ")
    assert "choices: sub/table.csv" in message


def test_mistakes_in_a_table_are_one_line_with_the_root(tmp_path: Path) -> None:
    contents = {**LAYOUTS["csv"][0], "table.csv": b"filename,label\nphotos/gone.png,ox\n"}
    place = as_folder(tmp_path / "place", contents)
    message = refusal(lambda: draw(dataset(place, csv="table.csv")))
    assert message.startswith(f"data.root={place}: ")
    assert "table.csv line 2: photos/gone.png is not there" in message


def test_a_split_that_is_not_all_there_is_one_line(place: Path, tmp_path: Path) -> None:
    path = listed(tmp_path)
    path.write_text(path.read_text().replace('"ox"', '"ocelot"'))
    message = refusal(lambda: draw(dataset(place, split=str(path))))
    assert message == f"data.split={path}: lists class ocelot without any image"


def test_a_class_in_two_splits_is_one_line_with_the_root(place: Path) -> None:
    as_folder(place, {"val/ox/x.png": b""})
    message = refusal(lambda: draw(dataset(place)))
    assert message.startswith(f"data.root={place}: ")
    assert "class ox is in both train and val" in message


def test_class_names_that_are_not_utf8_are_classes_or_refused(tmp_path: Path) -> None:
    """Of old archives, in Latin 1. Never a failure in the middle of a run."""
    place = as_folder(tmp_path / "place", FOLDERS)
    (place / "train/ox").rename(place / "train" / os.fsdecode(b"b\xe9b\xe9"))

    def read() -> bool:
        data = dataset(place)
        return data.facts()["images"] == 51 and json.loads(json.dumps(data.members)) == data.members

    assert attempt(read)[0] in (None, True)
