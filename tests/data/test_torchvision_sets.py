"""Sets of torchvision, from copies of their official folders made here of noise; nothing is downloaded."""

from __future__ import annotations

import csv
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.folder_data import dataset, picture
from helpers.image_files import as_folder, png, refusal

from metarun.data.images import ImageData
from metarun.data.torchvision import load_torchvision
from metarun.data.torchvision_sets import SETS

SIDE = 12


def from_torchvision(root: Path | str | None, name: str | None, **settings: Any) -> ImageData:
    return dataset(root, "torchvision", **{"name": name, "image_size": SIDE} | settings)


def aircraft(root: Path) -> None:
    """Six images of each of four variants, two in each part."""
    names, images = ["707-320", "F/A-18", "A318", "DC-3"], {}
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for c, label in enumerate(names):
        for i in range(6):
            images[f"images/{c}{i}.jpg"] = png(picture(10 * c + i, SIDE))
            parts[("train", "val", "test")[i // 2]].append(f"{c}{i} {label}")
    lists = {f"images_variant_{part}.txt": "\n".join(rows).encode() for part, rows in parts.items()}
    as_folder(root / "fgvc-aircraft-2013b/data", images | lists | {"variants.txt": "\n".join(names).encode()})


def signs(root: Path) -> None:
    """Two images of each of three signs for training, one for the test."""
    folder, rows = root / "gtsrb", [["Filename", "ClassId"]]
    for c in range(3):
        images = {f"{i:05d}.ppm": png(picture(10 * c + i, SIDE)) for i in range(2)}
        as_folder(folder / f"GTSRB/Training/{c:05d}", images)
        as_folder(folder / "GTSRB/Final_Test/Images", {f"{c:05d}.ppm": png(picture(10 * c + 2, SIDE))})
        rows.append([f"{c:05d}.ppm", str(c)])
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows(rows)
    as_folder(folder, {"GT-final_test.csv": text.getvalue().encode()})


def letters(root: Path) -> None:
    """Three grey images of each of the 47 classes of the balanced letters, two for training."""
    files = {}
    for part, each in (("train", 2), ("test", 1)):
        shape, labels = (47 * each, 28, 28), np.repeat(np.arange(47, dtype=np.uint8), each)
        images = np.random.default_rng(each).integers(0, 255, shape, dtype=np.uint8)
        start = f"EMNIST/raw/emnist-balanced-{part}"
        files[f"{start}-images-idx3-ubyte"] = struct.pack(">4i", 0x803, *shape) + images.tobytes()
        files[f"{start}-labels-idx1-ubyte"] = struct.pack(">2i", 0x801, len(labels)) + labels.tobytes()
    as_folder(root, files)


MADE: dict[str, tuple[Callable[[Path], None], dict[str, int]]] = {
    "FGVCAircraft": (aircraft, {"707-320": 6, "A318": 6, "DC-3": 6, "F/A-18": 6}),
    "GTSRB": (signs, {"0000": 3, "0001": 3, "0002": 3}),
    "EMNIST": (letters, {}),
}


@pytest.mark.parametrize("name", MADE)
def test_all_official_parts_are_joined_and_divided_by_class(name: str, tmp_path: Path) -> None:
    make, counts = MADE[name]
    make(tmp_path)
    data = from_torchvision(tmp_path, name)
    table, facts = data.source.table, data.facts()
    if counts:
        assert dict(zip(table.names, table.counts.tolist(), strict=True)) == counts
    assert (facts["split"], sum(facts["classes"].values())) == ("ratio", len(counts) or 47)
    assert from_torchvision(tmp_path, name).facts()["split_sha256"] == facts["split_sha256"]
    assert from_torchvision(tmp_path, name, split="all").facts()["classes"]["test"] == len(table.names)


def test_the_images_are_those_of_the_files_part_after_part(tmp_path: Path) -> None:
    aircraft(tmp_path)
    table = from_torchvision(tmp_path, "FGVCAircraft").source.table
    start = table.starts[table.names.index("A318")]
    for i in range(6):
        np.testing.assert_array_equal(table.images[start + i].permute(1, 2, 0), picture(20 + i, SIDE))


def test_every_set_is_a_class_of_torchvision_with_these_parts() -> None:
    """Names and arguments, without files: any other argument would be a TypeError."""
    datasets = load_torchvision().datasets
    for name, parts in SETS.items():
        for part in parts:
            try:
                getattr(datasets, name)("/nowhere", download=False, **part)
            except TypeError as error:
                raise AssertionError(f"{name}: {error}") from error
            except Exception:  # there are no files
                continue


def test_what_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    message = refusal(lambda: from_torchvision(tmp_path, "DTD").facts())
    assert message.startswith(f"data.root={tmp_path}: torchvision finds no DTD there (")
    assert message.endswith("data.download=true downloads it")
    for name in ("Aircraft", None):
        assert "choices: CIFAR10, " in refusal(lambda name=name: from_torchvision(tmp_path, name))  # type: ignore[misc]
    assert "data.root=None" in refusal(lambda: from_torchvision(None, "DTD").facts())


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(load_torchvision().datasets.dtd, "download_and_extract_archive", offline)
    message = refusal(lambda: from_torchvision(tmp_path / "new", "DTD", download=True).facts())
    assert message == f"data.root={tmp_path / 'new'}: torchvision cannot download DTD there (no route to host)"
