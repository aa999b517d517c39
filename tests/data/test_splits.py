"""Which classes are for training, validation and test: told by the files, published, drawn by a seed, or listed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.image_files import attempt, refusal

from metarun.compute.random import SPLITS
from metarun.data.benchmarks import RAVI
from metarun.data.images import Index, members_sha256, suggest_ratios
from metarun.data.splits import SplitSettings, check_split, limit_training_classes, split_classes
from metarun.errors import SettingError
from metarun.types import Split

PUBLISHED = tuple(sorted(n for part in RAVI.values() for n in part))
NAMES = tuple(f"class {i:02d}" for i in range(10))
GIVEN: dict[str, Split | None] = {n: SPLITS[i % 3] for i, n in enumerate(NAMES)}
LISTED = {"train": ["class 07", "class 01", "class 03"], "val": ["class 00"], "test": ["class 09", "class 02"]}

Parts = dict[str, list[str]]


def settings(split: str | Path = "auto", seed: int = 0, ratios: tuple[float, ...] = (0.6, 0.2, 0.2)) -> SplitSettings:
    return SplitSettings(str(split), seed, ratios)


def nothing(names: Sequence[str]) -> dict[str, Split | None]:
    """What a layout without a split says."""
    return dict.fromkeys(names)


def divide(
    names: Sequence[str] = NAMES, given: Mapping[str, Split | None] | None = None, how: SplitSettings | None = None
) -> tuple[str, Parts]:
    """The split's name, and the names of the classes of each part."""
    check_split(how or settings())
    label, parts = split_classes(names, nothing(names) if given is None else given, how or settings(), complete=False)
    assert list(parts) == list(SPLITS)
    assert all(ids.dtype == np.intp for ids in parts.values())
    return label, {split: [names[i] for i in ids] for split, ids in parts.items()}


def as_json(folder: Path, members: Mapping[str, Sequence[str]]) -> Path:
    """As in a run folder."""
    (folder / "split.json").write_text(json.dumps({split: list(names) for split, names in members.items()}, indent=2))
    return folder / "split.json"


def as_lists(folder: Path, members: Mapping[str, Sequence[str]], end: str = "\n", encoding: str = "utf-8") -> Path:
    """train.txt, val.txt and test.txt, each line ended as text files are."""
    (folder / "lists").mkdir()
    for split, names in members.items():
        (folder / f"lists/{split}.txt").write_bytes("".join(name + end for name in names).encode(encoding))
    return folder / "lists"


# Which split is taken


def test_the_published_split_has_64_16_and_20_classes_of_imagenet() -> None:
    """The hash is that of Ravi and Larochelle's lists."""
    assert {split: len(names) for split, names in RAVI.items()} == {"train": 64, "val": 16, "test": 20}
    assert len(set(PUBLISHED)) == 100
    assert all(re.fullmatch(r"n\d{8}", name) for name in PUBLISHED)
    expected = "89dd695c1df04a9b204c5665e4781fd5ba132fb343b43b6474547538271cfe3e"
    assert members_sha256({split: list(names) for split, names in RAVI.items()}) == expected


def test_auto_is_what_the_files_say() -> None:
    """Even for the published classes: someone may have divided them in another way."""
    assert divide(given=GIVEN) == ("given", {s: [n for n in NAMES if GIVEN[n] == s] for s in SPLITS})
    other: dict[str, Split | None] = {n: SPLITS[i % 3] for i, n in enumerate(PUBLISHED)}
    assert divide(PUBLISHED, other)[0] == "given"


def test_auto_is_ravis_split_for_exactly_the_published_classes() -> None:
    assert divide(PUBLISHED) == ("ravi", {split: sorted(names) for split, names in RAVI.items()})
    for names in (PUBLISHED[1:], (*PUBLISHED, "n99999999"), (*PUBLISHED[1:], "n99999999")):
        assert divide(names)[0] == "ratio"


def test_auto_is_a_ratio_for_other_classes() -> None:
    assert divide() == divide(how=settings("ratio"))
    assert divide()[0] == "ratio"


def test_a_split_that_the_files_give_in_part_only_is_not_taken() -> None:
    part = {**GIVEN, "class 04": None}
    assert divide(given=part)[0] == "ratio"
    assert "split=given" in refusal(lambda: divide(given=part, how=settings("given")))


@pytest.mark.parametrize("kind", ["ravi", "ratio"])
def test_another_split_than_that_of_the_files_can_be_asked_for(kind: str) -> None:
    given: dict[str, Split | None] = {n: SPLITS[i % 3] for i, n in enumerate(PUBLISHED)}
    assert divide(PUBLISHED, given, settings(kind)) == divide(PUBLISHED, how=settings(kind))


def test_given_is_refused_where_the_files_say_nothing() -> None:
    with pytest.raises(SettingError) as caught:
        divide(how=settings("given"))
    assert (caught.value.key, caught.value.value) == ("split", "given")
    assert "choices: ratio, ravi, bertinetto, oreshkin, chen, ren, all, PATH" in caught.value.expected


def test_ravi_names_a_class_that_is_missing_and_how_many_more() -> None:
    assert "n01532829 without any image" in refusal(
        lambda: divide([n for n in PUBLISHED if n != "n01532829"], how=settings("ravi"))
    )
    assert "n01532829 and 99 more without" in refusal(lambda: divide(how=settings("ravi")))


def test_ravi_leaves_out_what_it_does_not_name() -> None:
    label, parts = divide([*PUBLISHED, "x", "y"], how=settings("ravi"))
    assert (label, {s: set(p) for s, p in parts.items()}) == ("ravi", {s: set(p) for s, p in RAVI.items()})


# Ratio


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(3, (1, 1, 1)), (5, (3, 1, 1)), (10, (4, 3, 3)), (24, (14, 5, 5)), (25, (15, 5, 5)), (40, (24, 8, 8))],
)
def test_without_ratios_few_classes_leave_enough_for_a_task_of_each_split(count: int, sizes: tuple[int, ...]) -> None:
    _, parts = divide([f"c{n}" for n in range(count)], how=settings("ratio")._replace(ratios=None))
    assert tuple(map(len, parts.values())) == sizes


@pytest.mark.parametrize("classes", [6, 10, 15, 31, 64, 100])
def test_the_ratios_that_a_message_suggests_give_what_it_promises(classes: int) -> None:
    names = [f"c{n:03}" for n in range(classes)]
    for ways in range(2, classes // 3 + 1):
        advice = suggest_ratios(ways, classes)
        ratios = tuple(json.loads(advice.partition("=")[2].partition(" ")[0]))
        _, parts = divide(names, how=settings("ratio", ratios=ratios))
        assert [len(part) for part in parts.values()] == [classes - 2 * ways, ways, ways]
    assert suggest_ratios(classes // 3 + 1, classes).endswith(f"enough for data.ways={classes // 3}")


@pytest.mark.parametrize("count", [10, 37, 100, 1623])
@pytest.mark.parametrize("ratios", [(0.6, 0.2, 0.2), (0.64, 0.16, 0.2), (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)])
def test_a_ratio_is_disjoint_complete_and_of_the_rounded_sizes(count: int, ratios: tuple[float, ...]) -> None:
    """The cuts are rounded, so that no size is further than 1 from its share."""
    names = [f"{i}" for i in range(count)]
    _, parts = divide(names, how=settings("ratio", ratios=ratios))
    everyone = [name for part in parts.values() for name in part]
    assert sorted(everyone) == sorted(names)
    for part, ratio in zip(parts.values(), ratios, strict=True):
        assert abs(len(part) - ratio * count) < 1
    assert abs(len(parts["train"]) - ratios[0] * count) <= 0.5
    assert abs(len(parts["test"]) - ratios[2] * count) <= 0.5 + 1e-9


def test_a_ratio_of_the_published_sizes_has_them() -> None:
    parts = divide(PUBLISHED, how=settings("ratio", ratios=(0.64, 0.16, 0.2)))[1]
    assert [len(part) for part in parts.values()] == [64, 16, 20]


def test_a_ratio_is_a_function_of_its_seed_and_the_set_of_names() -> None:
    """Not of the order in which a system lists folders."""
    names = [f"class {i:02d}" for i in range(100)]
    first, other = (divide(names, how=settings("ratio", seed))[1] for seed in (0, 1))
    assert divide(names, how=settings("ratio", 0))[1] == first
    shuffled = random.Random(0).sample(names, len(names))
    again = divide(shuffled, how=settings("ratio", 0))[1]
    assert {split: sorted(part) for split, part in again.items()} == first
    assert len({*first["train"]} & {*other["train"]}) < 50  # 36 on average, deviation 2.4


def test_the_first_seeds_draw_each_class_for_training_as_often() -> None:
    """Of 400 draws of 6 in 10, each class is in 240, with a deviation of 9.8."""
    drawn = [name for seed in range(400) for name in divide(how=settings("ratio", seed))[1]["train"]]
    assert all(abs(drawn.count(name) - 240) < 50 for name in NAMES)


def test_the_ratio_of_these_names_is_this_one() -> None:
    """Pinned: a published hash must be repeatable with later versions of metarun and NumPy."""
    assert members_sha256(divide(how=settings("ratio", 7))[1]) == (
        "86f8717ba6b90efd69d25b5f149afbcbd43a5e62501d848b0e490b9e1ab44d09"
    )


def test_ratio_is_a_name_even_where_a_file_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    as_json(tmp_path, LISTED).rename("ratio")
    assert divide(how=settings("ratio"))[0] == "ratio"


# Lists


@pytest.mark.parametrize("make", [as_json, as_lists])
def test_a_split_can_be_listed_and_classes_that_it_does_not_name_are_left_out(
    tmp_path: Path, make: Callable[[Path, Mapping[str, Sequence[str]]], Path]
) -> None:
    path = make(tmp_path, LISTED)
    label, parts = divide(given=GIVEN, how=settings(path))
    assert label == path.name
    assert {s: sorted(p) for s, p in parts.items()} == {s: sorted(p) for s, p in LISTED.items()}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n \n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_as_editors_write_them(tmp_path: Path, end: str, encoding: str) -> None:
    """Line ends of Windows, empty lines, a byte order mark."""
    path = as_lists(tmp_path, LISTED, end, encoding)
    assert {s: sorted(p) for s, p in divide(how=settings(path))[1].items()} == {s: sorted(p) for s, p in LISTED.items()}


def test_a_last_line_need_not_end(tmp_path: Path) -> None:
    path = as_lists(tmp_path, LISTED)
    for name in SPLITS:
        (path / f"{name}.txt").write_text("\n".join(LISTED[name]))
    assert {s: sorted(p) for s, p in divide(how=settings(path))[1].items()} == {s: sorted(p) for s, p in LISTED.items()}


@pytest.mark.parametrize("make", [as_json, as_lists])
def test_the_order_of_a_list_does_not_matter(tmp_path: Path, make: Callable[..., Path]) -> None:
    """The split's hash does not know it, so that episodes must not either: a class's number is by its name."""
    path = make(tmp_path, LISTED)
    numbers = split_classes(NAMES, nothing(NAMES), settings(path))[1]
    assert {s: ids.tolist() for s, ids in numbers.items()} == {"train": [1, 3, 7], "val": [0], "test": [2, 9]}


def test_what_a_run_wrote_is_the_same_split_again(tmp_path: Path) -> None:
    _, parts = divide(how=settings("ratio", 3))
    label, again = divide(how=settings(as_json(tmp_path, parts)))
    assert (label, again) == ("split.json", parts)
    assert members_sha256(again) == members_sha256(parts)


@pytest.mark.parametrize("make", [as_json, as_lists])
def test_ravis_split_is_called_so_wherever_it_comes_from(tmp_path: Path, make: Callable[..., Path]) -> None:
    path = make(tmp_path, {split: names[::-1] for split, names in RAVI.items()})
    label, parts = divide(PUBLISHED, how=settings(path))
    assert (label, parts) == ("ravi", divide(PUBLISHED, how=settings("ravi"))[1])
    given: dict[str, Split | None] = {n: split for split, names in RAVI.items() for n in names}
    assert divide(PUBLISHED, given) == ("ravi", parts)
    assert divide(PUBLISHED, given, settings("given")) == ("ravi", parts)


def test_a_split_that_is_nearly_ravis_is_not_called_so(tmp_path: Path) -> None:
    train, val = list(RAVI["train"]), list(RAVI["val"])
    train[0], val[0] = val[0], train[0]
    path = as_json(tmp_path, {"train": train, "val": val, "test": RAVI["test"]})
    label, _ = divide(PUBLISHED, how=settings(path))
    assert label == "split.json"


@pytest.mark.parametrize("make", [as_json, as_lists])
def test_listed_classes_that_are_not_there_are_named(tmp_path: Path, make: Callable[..., Path]) -> None:
    path = make(tmp_path, {**LISTED, "test": ["class 02", "class 77", "class 78", "class 79"]})
    message = refusal(lambda: divide(how=settings(path)))
    assert message == f"data.split={path}: lists class class 77 and 2 more without any image"


@pytest.mark.parametrize("make", [as_json, as_lists])
@pytest.mark.parametrize("part", SPLITS)
def test_a_part_may_be_without_classes(tmp_path: Path, make: Callable[..., Path], part: Split) -> None:
    """A job that draws from it is refused (test_images.py)."""
    path = make(tmp_path, {**LISTED, part: []})
    assert {s: len(p) for s, p in divide(how=settings(path))[1].items()} == {
        s: 0 if s == part else len(LISTED[s]) for s in SPLITS
    }


def test_a_part_without_classes_is_refused_where_the_split_is_to_be_complete() -> None:
    message = refusal(lambda: split_classes(NAMES[:2], nothing(NAMES[:2]), settings("ratio")))
    assert "leaves no class for test (2 classes in all)" in message


@pytest.mark.parametrize("count", [3, 4, 5])
def test_each_part_has_a_class_if_there_are_three(count: int) -> None:
    """Three classes at 0.6, 0.2, 0.2 would be 2, 0 and 1."""
    for ratios in ((0.6, 0.2, 0.2), (0.98, 0.01, 0.01), (0.01, 0.01, 0.98)):
        _, parts = divide(NAMES[:count], how=settings("ratio")._replace(ratios=ratios))
        assert min(map(len, parts.values())) >= 1
        assert sum(map(len, parts.values())) == count


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_classes_leave_parts_empty(count: int) -> None:
    parts = divide(NAMES[:count], how=settings("ratio"))[1]
    assert [len(parts[s]) for s in SPLITS] == [[0, 0, 0], [1, 0, 0], [1, 1, 0]][count]


def test_a_part_that_the_files_do_not_have_is_empty() -> None:
    given: dict[str, Split | None] = {n: "train" if i % 2 else "test" for i, n in enumerate(NAMES)}
    assert [len(part) for part in divide(given=given)[1].values()] == [len(NAMES) // 2, 0, len(NAMES) - len(NAMES) // 2]


def test_all_makes_every_class_a_test_class() -> None:
    name, parts = divide(how=settings("all"))
    assert (name, [*parts["train"], *parts["val"]], sorted(parts["test"])) == ("all", [], sorted(NAMES))


@pytest.mark.parametrize("make", [as_json, as_lists])
def test_a_class_in_two_parts_is_refused(tmp_path: Path, make: Callable[..., Path]) -> None:
    """Test classes that were trained on would make every figure wrong."""
    path = make(tmp_path, {**LISTED, "test": ["class 02", "class 03"]})
    message = refusal(lambda: divide(how=settings(path)))
    assert "class 03" in message
    assert "train" in message
    assert "test" in message


@pytest.mark.parametrize("make", [as_json, as_lists])
def test_a_class_that_is_listed_twice_is_refused_or_counts_once(tmp_path: Path, make: Callable[..., Path]) -> None:
    """Or else an episode could have it as two classes that no learner can tell apart."""
    path = make(tmp_path, {**LISTED, "train": [*LISTED["train"], "class 03"]})
    found, message = attempt(lambda: divide(how=settings(path)))
    if found is None:
        assert "class 03" in message
    else:
        assert sorted(found[1]["train"]) == sorted(LISTED["train"])


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"{",
            b"[]",
            b"3",
            b"null",
            b'"text"',
            b'{"train": [], "val": []}',
            b'{"train": 1, "val": 2, "test": 3}',
        ),
        *(b'{"train": null, "val": [], "test": []}', b"\xff\xfe{}", b'{"train": ["class 01"]}', b'["train", "val"]'),
    ],
)
def test_a_file_that_is_no_split_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "split.json").write_bytes(content)
    with pytest.raises(SettingError) as caught:
        divide(how=settings(tmp_path / "split.json"))
    assert caught.value.key == "split"
    assert "must be a split.json or a folder with train.txt, val.txt, test.txt" in caught.value.expected
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_without_one_of_the_lists_is_refused(tmp_path: Path) -> None:
    path = as_lists(tmp_path, LISTED)
    (path / "val.txt").unlink()
    message = refusal(lambda: divide(how=settings(path)))
    assert message.startswith(f"split={path}: must be a split.json or a folder with train.txt, val.txt, test.txt")
    assert "val.txt" in message


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    as_json(tmp_path, LISTED)
    assert divide(how=settings("~/split.json"))[0] == "split.json"


# Settings


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        *[("split", settings(s)) for s in ("", "Ravi", "none", "gone/split.json", "x" * 300, "~no one/split.json")],
        *[("split_seed", settings(seed=s)) for s in (-1, 2**63)],
        *[("ratios", settings(ratios=r)) for r in ((), (0.5, 0.5), (0.5, 0.3, 0.1, 0.1), (0.6, 0.2, 0.3))],
        *[("ratios", settings(ratios=r)) for r in ((1.0, 0.0, 0.0), (1.2, -0.4, 0.2), (float("nan"), 0.5, 0.5))],
        *[("ratios", settings(ratios=r)) for r in ((60.0, 20.0, 20.0), (float("inf"), 0.5, 0.5))],
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_name(key: str, wrong: SplitSettings) -> None:
    """Before any file is looked for."""
    with pytest.raises(SettingError) as caught:
        check_split(wrong)
    assert caught.value.key == key
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "sound",
    [settings(s) for s in ("auto", "given", "ravi", "ratio")] + [settings(seed=2**63 - 1, ratios=(0.1, 0.1, 0.8))],
)
def test_settings_that_can_work_are_taken(sound: SplitSettings) -> None:
    check_split(sound)


def test_limit_training_classes_are_nested_seeded_and_leave_the_other_parts_alone() -> None:
    whole: dict[Split, Index] = {"train": np.arange(10, 30), "val": np.arange(5), "test": np.arange(5, 10)}
    few, more = (limit_training_classes(whole, n, 3)["train"] for n in (4, 9))
    assert len(few) == 4
    assert set(few) < set(more) < set(whole["train"])
    assert list(few) == sorted(few)
    assert set(few) != set(limit_training_classes(whole, 4, 4)["train"])
    kept = limit_training_classes(whole, 20, 3)
    assert all(np.array_equal(kept[split], whole[split]) for split in whole)
    assert limit_training_classes(whole, None, 3) is whole
    for wrong in (0, 21):
        with pytest.raises(SettingError, match=rf"train_classes={wrong}: must be 1 to 20"):
            limit_training_classes(whole, wrong, 3)
