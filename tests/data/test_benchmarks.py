"""Sets with a published split: their lists, and the same images from every layout. The images are noise."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.folder_data import dataset, digest, picture
from helpers.image_files import Contents, as_folder, as_tar, as_zip, png, refusal

from metarun.compute.random import SPLITS
from metarun.data.benchmarks import BENCHMARKS, PUBLISHED
from metarun.data.images import ImageData, members_sha256

SUPERCLASSES = {  # of CIFAR-100 (Krizhevsky 2009), those of FC100's parts
    "val": "bear leopard lion tiger wolf camel cattle chimpanzee elephant kangaroo crab lobster snail spider worm "
    "hamster mouse rabbit shrew squirrel",
    "test": "beaver dolphin otter seal whale bee beetle butterfly caterpillar cockroach fox porcupine possum raccoon "
    "skunk baby boy girl man woman",
}
SIDE = 32
CIFAR = sorted(name for names in PUBLISHED["bertinetto"].values() for name in names)
SPLIT_OF = {name: split for split, names in PUBLISHED["bertinetto"].items() for name in names}
# Class -> file name -> pixels. The files of a class have the names of other words, as in the official archive.
PICTURES = {
    label: {f"{label[::-1]}_s_{7 * i:06d}.png": picture(10 * c + i, SIDE) for i in range(6)}
    for c, label in enumerate(CIFAR)
}
ROWS = [(label, name, pixels) for label, images in PICTURES.items() for name, pixels in images.items()]


def each(name: Callable[[str, str, int], str]) -> dict[str, bytes]:
    return {name(c, n, i): png(pixels) for i, (c, n, pixels) in enumerate(ROWS)}


def official(protocol: int = 2, text: Callable[[str], Any] = str.encode, folder: str = "cifar-100-python/") -> Contents:
    """The files of the official archive: rows in another order, four images of a class in train and two in test."""
    order = np.random.default_rng(0).permutation(len(ROWS))
    found = {}
    for part, rows in (("train", [r for r in order if r % 6 < 4]), ("test", [r for r in order if r % 6 > 3])):
        stored = {
            "filenames": [text(ROWS[row][1]) for row in rows],
            "batch_label": text("training batch 1 of 1"),
            "fine_labels": [CIFAR.index(ROWS[row][0]) for row in rows],
            "coarse_labels": [0] * len(rows),
            "data": np.stack([ROWS[row][2].transpose(2, 0, 1).reshape(-1) for row in rows]),
        }
        found[folder + part] = pickle.dumps({text(key): value for key, value in stored.items()}, protocol)
    meta = {"fine_label_names": [text(c) for c in CIFAR], "coarse_label_names": []}
    found[folder + "meta"] = pickle.dumps({text(k): v for k, v in meta.items()}, protocol)
    return found | {folder + "file.txt~": b""}


def of_split(split: str) -> tuple[np.ndarray, list[str]]:
    rows = [row for row in ROWS if SPLIT_OF[row[0]] == split]
    return np.stack([pixels for _, _, pixels in rows]), [label for label, _, _ in rows]


def numbered(name: str, number: Callable[[str, str], int], kind: str = "pickle") -> dict[str, bytes]:
    """A file for each split, as few-shot repositories keep CIFAR-FS and FC100."""
    found = {}
    for split in SPLITS:
        images, labels = of_split(split)
        numbers = np.array([number(split, label) for label in labels])
        if kind == "npz":
            buffer = io.BytesIO()
            np.savez(buffer, features=images, targets=numbers)
            found[f"{name}{split}.npz"] = buffer.getvalue()
        else:
            found[f"{name}{split}.pickle"] = pickle.dumps({"data": images, "labels": numbers.tolist()}, 2)
    return found


def by_class() -> dict[str, bytes]:
    found = {}
    for split in SPLITS:
        images, labels = of_split(split)
        rows = {label: [i for i, one in enumerate(labels) if one == label] for label in labels}
        found[f"cifar100fs-cache-{split}.pkl"] = pickle.dumps({"image_data": images, "class_dict": rows}, 2)
    return found


def part(row: int) -> str:
    return "train" if row % 6 < 4 else "test"


def in_alphabet(split: str, label: str) -> int:
    return CIFAR.index(label)


def anew(split: str, label: str) -> int:
    return sorted(PUBLISHED["bertinetto"][split]).index(label)  # type: ignore[index]


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "folders": lambda to: as_folder(to, each(lambda c, n, i: f"{c}/{n}")),
    "folders below others": lambda to: as_folder(to, each(lambda c, n, i: f"data/cifar100/{c}/{n}")),
    "train and test of images": lambda to: as_folder(to, each(lambda c, n, i: f"{part(i)}/{c}/{n}")),
    "split folders": lambda to: as_folder(to, each(lambda c, n, i: f"meta-{SPLIT_OF[c]}/{c}/{n}")),
    "zip": lambda to: as_zip(to / "x.zip", each(lambda c, n, i: f"cifar100/{c}/{n}")),
    "official folder": lambda to: as_folder(to, official()),
    "official folder itself": lambda to: as_folder(to, official()) / "cifar-100-python",
    "official archive": lambda to: as_tar(to / "cifar-100-python.tar.gz", official(), "w:gz"),
    "rewritten by Python 3": lambda to: as_folder(to, official(4, str, "")),
    "class_dict": lambda to: as_folder(to, by_class()),
    "numbers": lambda to: as_folder(to, numbered("CIFAR_FS_", in_alphabet)),
    "npz": lambda to: as_folder(to, numbered("few-shot-", in_alphabet, "npz")),
}


def beside(to: Path, archive: bool = True) -> Path:
    """An archive in a folder with lists, as people download it."""
    as_zip(to / "cifar100.zip", each(lambda c, n, i: f"cifar100/{c}/{n}"))
    (to / "cifar_fs_train.txt").write_text("apple\n")
    return to


LAYOUTS["archive beside lists"] = beside
LAYOUTS["torchvision's folder"] = lambda to: (
    as_tar(to / "cifar-100-python.tar.gz", official(), "w:gz"),
    as_folder(to, official()),
)[1]


def cifar_fs(root: Path, **settings: Any) -> ImageData:
    return dataset(root, "cifar_fs", image_size=SIDE, **settings)


# The lists


def test_the_lists_have_the_published_sizes_and_share_no_class() -> None:
    sizes = {split: tuple(len(lists[s]) for s in SPLITS) for split, lists in PUBLISHED.items()}
    assert sizes == {
        "ravi": (64, 16, 20),
        "bertinetto": (64, 16, 20),
        "oreshkin": (60, 20, 20),
        "chen": (100, 50, 50),
        "ren": (351, 97, 160),
    }
    for lists in PUBLISHED.values():
        assert len({name for names in lists.values() for name in names}) == sum(map(len, lists.values()))


def test_fc100_keeps_superclasses_together() -> None:
    split = PUBLISHED["oreshkin"]
    assert {s: {*names.split()} for s, names in SUPERCLASSES.items()} == {s: {*split[s]} for s in ("val", "test")}
    assert {*split["train"]} == {*CIFAR} - {*" ".join(SUPERCLASSES.values()).split()}


def test_cub_is_every_second_class_and_of_the_others_every_second() -> None:
    split = PUBLISHED["chen"]
    numbers = {s: sorted(int(name.partition(".")[0]) - 1 for name in split[s]) for s in SPLITS}
    assert numbers == {"train": [*range(0, 200, 2)], "val": [*range(1, 200, 4)], "test": [*range(3, 200, 4)]}


@pytest.mark.parametrize(
    ("split", "digits"),
    [("bertinetto", "1b8df2e2fa0c"), ("oreshkin", "e2280104ed3a"), ("chen", "a02bc005d3a9"), ("ren", "6d75829a2554")],
)
def test_the_hashes_of_the_lists(split: str, digits: str) -> None:
    """Pinned: results carry them."""
    assert members_sha256({s: list(names) for s, names in PUBLISHED[split].items()})[:12] == digits


@pytest.mark.parametrize("name", BENCHMARKS)
def test_plain_folders_of_the_published_classes_are_divided_as_published(name: str, tmp_path: Path) -> None:
    lists = BENCHMARKS[name].classes
    labels = sorted(label for labels in lists.values() for label in labels)
    images = {f"{n}/{i}.png": png(picture(2 * c + i, 8)) for c, n in enumerate(labels) for i in (0, 1)}
    root = as_zip(tmp_path / "x.zip", images)
    facts = dataset(root, name, image_size=8).facts()
    assert facts["split"] == BENCHMARKS[name].split
    assert facts["classes"] == {split: len(names) for split, names in lists.items()}
    assert facts["split_sha256"] == members_sha256({split: list(names) for split, names in lists.items()})
    assert "caveat" not in facts
    other = dataset(root, name, image_size=8, split="ratio").facts()
    assert f"not the published {name}: images in another split" in other["caveat"]


def test_the_folder_is_found_below_a_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_folder(tmp_path / "cifar100", each(lambda c, n, i: f"{c}/{n}"))
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    assert cifar_fs(None).facts()["split"] == "bertinetto"  # type: ignore[arg-type]
    fc100 = dataset(tmp_path, "fc100", image_size=SIDE).facts()
    assert (fc100["split"], fc100["classes"]) == ("oreshkin", {"train": 60, "val": 20, "test": 20})


# The layouts


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return digest(cifar_fs(LAYOUTS["folders"](tmp_path_factory.mktemp("folders"))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_bits(layout: str, expected: dict[str, str], tmp_path: Path) -> None:
    data = cifar_fs(LAYOUTS[layout](tmp_path))
    facts = data.facts()
    assert (facts["split"], facts["images"]) == ("bertinetto", 600)
    assert "caveat" not in facts
    assert digest(data) == expected


def test_one_set_of_files_serves_both_splits_of_cifar_100(tmp_path: Path) -> None:
    root = as_folder(tmp_path, official())
    assert dataset(root, "fc100", image_size=SIDE).facts()["split"] == "oreshkin"
    assert (
        cifar_fs(root, split="oreshkin").facts()["caveat"].startswith("not the published cifar_fs: images in another")
    )


def test_numbers_that_are_no_published_split_stay_numbers(tmp_path: Path) -> None:
    """As 0 to 63, 0 to 15 and 0 to 19: other classes may have these numbers."""
    data = cifar_fs(as_folder(tmp_path, numbered("CIFAR_FS_", anew)))
    assert data.members["val"][:2] == ["val/0000", "val/0001"]
    assert [len(names) for names in data.members.values()] == [64, 16, 20]
    assert data.facts()["caveat"].startswith("perhaps not the published cifar_fs: as many classes, under other names")


def test_pickles_of_png_files_are_read(tmp_path: Path) -> None:
    """tieredImageNet: lists of encoded images, and names of classes in words."""
    contents = {}
    for number, split in enumerate(SPLITS):
        files = [np.frombuffer(png(picture(10 * number + i, 8)), np.uint8) for i in range(6)]
        shaped = [file[:, None] if number else file for file in files]
        labels = {
            b"label_specific": np.array([0, 1, 1, 0, 0, 1]),
            b"label_general": np.zeros(6, np.int64),
            b"label_specific_str": [f"{split} fish", f"{split} bird, of any kind"],
        }
        contents[f"{split}_images_png.pkl"] = pickle.dumps(shaped, 4)
        contents[f"{split}_labels.pkl"] = pickle.dumps(labels, 4)
    data = dataset(as_folder(tmp_path, contents), "tieredimagenet", image_size=8)
    assert data.members["val"] == ["val bird, of any kind", "val fish"]
    table = data.source.table
    first = table.starts[table.names.index("val bird, of any kind")]
    np.testing.assert_array_equal(table.images[first].permute(1, 2, 0), picture(11, 8))
    assert "of other classes" in data.facts()["caveat"]


def test_images_of_a_class_in_two_splits_are_joined_for_a_benchmark_alone(tmp_path: Path) -> None:
    root = LAYOUTS["train and test of images"](tmp_path)
    assert cifar_fs(root).facts()["layout"] == "class folders"
    message = refusal(lambda: dataset(root, image_size=SIDE).facts())
    assert "is in both" in message


def test_a_pickle_beside_images_is_none_of_the_data(tmp_path: Path) -> None:
    root = as_folder(tmp_path, {**each(lambda c, n, i: f"{c}/{n}"), "train.pkl": b"weights", "val.pkl": b""})
    assert cifar_fs(root).facts()["layout"] == "class folders"


# What is wrong


def without(key: str, contents: Contents, file: str) -> dict[str, bytes]:
    stored = pickle.loads(contents[file])
    return {**contents, file: pickle.dumps({k: v for k, v in stored.items() if k != key.encode()}, 2)}


def with_array(**arrays: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return {f"few-shot-{split}.npz": buffer.getvalue() for split in SPLITS}


NOISE = np.zeros((2, 8, 8, 3), np.uint8)
WRONG: dict[str, tuple[Callable[[], Contents], Sequence[str]]] = {
    "no class names": (
        lambda: without("fine_label_names", official(), "cifar-100-python/meta"),
        ["cifar-100-python/meta: is not a readable pickle", "fine_label_names"],
    ),
    "no labels": (
        lambda: without("fine_labels", official(), "cifar-100-python/test"),
        ["cifar-100-python/test: is not a readable pickle", "fine_labels"],
    ),
    "text": (lambda: {**official(), "cifar-100-python/train": b"<html>"}, ["train: is not a readable pickle"]),
    "floats": (
        lambda: with_array(features=NOISE / 255, targets=[0, 1]),
        ["few-shot-train.npz: features is float64 [2, 8, 8, 3], not uint8 [n, H, W, 3]"],
    ),
    "objects": (
        lambda: with_array(features=np.array([None, 1]), targets=[0, 1]),
        ["few-shot-train.npz: is not a readable npz file of images", "it holds Python objects"],
    ),
    "no targets": (
        lambda: with_array(features=NOISE),
        ["few-shot-train.npz: is not a readable npz", "class_dict"],
    ),
    "too many targets": (
        lambda: with_array(features=NOISE, targets=[0, 1, 1]),
        ["few-shot-train.npz: targets names row 2, but features has 2 rows"],
    ),
    "png files without labels": (
        lambda: {"train_images_png.pkl": pickle.dumps([np.zeros(3, np.uint8)])},
        ["train_labels.pkl"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_files_that_cannot_be_meant_are_refused_in_one_line(wrong: str, tmp_path: Path) -> None:
    make, expected = WRONG[wrong]
    root = as_folder(tmp_path, make())
    message = refusal(lambda: cifar_fs(root).facts())
    assert message.startswith(f"data.root={tmp_path}")
    assert all(part in message for part in expected), message
