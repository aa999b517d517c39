"""Which file shows which class, told from names and tables alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
from helpers.image_files import in_memory, refusal

from metarun.data.layouts import Layout, recognise
from metarun.errors import SettingError

# Two training classes, one each for validation and test; names that sort differently by class, name and number.
CLASSES = {
    "ox": ["b.jpg", "a.JPEG"],
    "ant": ["10.png", "9.png", "z.Png"],
    "Yak": ["d.bmp", "c.png"],
    "bee ü": ["e.webp"],
}
SPLITS = {"ox": "train", "ant": "train", "Yak": "val", "bee ü": "test"}
Names = Mapping[str, bytes | str]


def found(layout: Layout | None) -> list[tuple[str, str, str | None]]:
    """Class, the file's own name and split of each image, in order."""
    assert layout is not None
    return [(e.label, e.name.rpartition("/")[2], e.split) for e in layout.entries]


def rows(contents: Names, csv: str | None = None) -> list[tuple[str, str, str | None]]:
    return found(recognise(in_memory(contents), csv))


def table(wanted: Iterable[str], split: bool = False, folder: str = "") -> str:
    lines = [f"{folder}{n},{c}{f',{SPLITS[c]}' if split else ''}" for c in wanted for n in CLASSES[c]]
    return "\n".join([f"filename,label{',split' if split else ''}", *lines, ""])


def images(name: Callable[[str, str], str]) -> dict[str, bytes]:
    return {name(label, image): b"" for label, names in CLASSES.items() for image in names}


def of_split(split: str) -> list[str]:
    return [label for label in CLASSES if SPLITS[label] == split]


CSV: Names = {"t.csv": table(CLASSES), **images(lambda c, n: n)}
CSV_SPLIT: Names = {"t.csv": table(CLASSES, split=True), **images(lambda c, n: n)}
RAVI: Names = {
    **{f"{s}.csv": table(of_split(s)) for s in ("train", "val", "test")},
    **images(lambda c, n: f"images/{n}"),
}
FOLDERS: Names = images(lambda c, n: f"{SPLITS[c]}/{c}/{n}")
BY_CLASS: Names = images(lambda c, n: f"{c}/{n}")
LAYOUTS: dict[str, tuple[str, Names, bool]] = {  # the name, the files, whether it says which split
    "csv": ("csv", CSV, False),
    "csv with split": ("csv", CSV_SPLIT, True),
    "split csvs": ("split csvs", RAVI, True),
    "split folders": ("split folders", FOLDERS, True),
    "class folders": ("class folders", BY_CLASS, False),
}
ORDER = [(label, name) for label in ("Yak", "ant", "bee ü", "ox") for name in sorted(CLASSES[label])]


def below(folder: str, contents: Names) -> Names:
    return {folder + name: content for name, content in contents.items()}


@pytest.mark.parametrize("folder", ["", "mini-imagenet/", "Data set/v1.0/", "train/", "images/train/"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognised_below_other_folders(layout: str, folder: str) -> None:
    """Whatever these are called; classes by name, and their images by file name, in every layout."""
    name, contents, split = LAYOUTS[layout]
    result = recognise(in_memory(below(folder, contents)), f"{folder}t.csv" if name == "csv" else None)
    assert result is not None
    assert result.name == name
    assert found(result) == [(c, n, SPLITS[c] if split else None) for c, n in ORDER]
    assert {e.name for e in result.entries} == {n for n in below(folder, contents) if not n.endswith(".csv")}


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "VALID", "Test"), ("train", "validation", "test")]
)
def test_validation_has_three_names(names: tuple[str, str, str]) -> None:
    """As folders and in a csv, in any case."""
    called = dict(zip(("train", "val", "test"), names, strict=True))
    expected = [(c, n, SPLITS[c]) for c, n in ORDER]
    assert rows(images(lambda c, n: f"{called[SPLITS[c]]}/{c}/{n}")) == expected
    lines = [f"{n},{c},{called[SPLITS[c]]}" for c, ns in CLASSES.items() for n in ns]
    assert rows({"t.csv": "filename,label,split\n" + "\n".join(lines), **images(lambda c, n: n)}, "t.csv") == expected


def test_two_split_folders_are_enough() -> None:
    """What is not there is said when the split is made."""
    contents = {name: b"" for name in FOLDERS if not name.startswith("val/")}
    assert {split for _, _, split in rows(contents)} == {"train", "test"}


def test_one_split_folder_is_a_parent_folder() -> None:
    """Someone has the training classes only: they are classes without a split."""
    contents = {name: b"" for name in FOLDERS if name.startswith("train/")}
    assert rows(contents) == [("ant", n, None) for n in ("10.png", "9.png", "z.Png")] + [
        ("ox", n, None) for n in ("a.JPEG", "b.jpg")
    ]


def test_images_may_lie_deeper_in_a_class_folder() -> None:
    contents = {"a/x/2.png": b"", "a/1.png": b"", "b/y/z/3.png": b""}
    assert rows(contents) == [("a", "1.png", None), ("a", "2.png", None), ("b", "3.png", None)]
    parts = {f"{split}/{c}/deep/1.png": b"" for split, c in [("train", "a"), ("val", "b"), ("test", "c")]}
    assert [(c, s) for c, _, s in rows(parts)] == [("a", "train"), ("b", "val"), ("c", "test")]


def test_other_files_are_no_images() -> None:
    more = {
        "a/notes.txt": b"",
        "a/labels.csv": b"",
        "b/1.png.part": b"",
        "b/png": b"",
        "Thumbs.db": b"",
        "c/x.mat": b"",
    }
    assert rows({**more, "a/1.png": b"", "b/1.gif": b""}) == [("a", "1.png", None), ("b", "1.gif", None)]


@pytest.mark.parametrize("stray", ["contact_sheet.png", "train/preview.jpg", "val/preview.jpg"])
def test_images_outside_of_class_folders_are_ignored_among_split_folders(stray: str) -> None:
    """They must not turn train, val and test into three classes."""
    result = recognise(in_memory({**FOLDERS, stray: b""}))
    assert result is not None
    assert (result.name, found(result)) == ("split folders", [(c, n, SPLITS[c]) for c, n in ORDER])


def test_images_outside_of_class_folders_are_ignored_among_class_folders() -> None:
    assert rows({**BY_CLASS, "contact_sheet.png": b"", "zz.jpg": b""}) == [(c, n, None) for c, n in ORDER]


@pytest.mark.parametrize("contents", [{}, {"a/notes.txt": b""}, {"1.png": b"", "2.png": b""}, {"x/y/1.png": b""}])
def test_without_images_in_class_folders_there_is_no_layout(contents: Names) -> None:
    assert recognise(in_memory(contents)) is None


@pytest.mark.parametrize(
    "names",
    [("training", "validation", "testing"), ("meta-train", "meta-val", "meta-test"), ("base", "val", "novel")],
)
def test_splits_have_several_usual_names(names: tuple[str, str, str]) -> None:
    called = dict(zip(("train", "val", "test"), names, strict=True))
    expected = [(c, n, SPLITS[c]) for c, n in ORDER]
    assert rows(images(lambda c, n: f"{called[SPLITS[c]]}/{c}/{n}")) == expected
    ravi = {f"{called[name[:-4]]}.csv" if name.endswith(".csv") else name: c for name, c in RAVI.items()}
    assert rows(ravi) == expected


def test_a_test_folder_of_loose_images_is_passed_over_and_no_class() -> None:
    contents = dict.fromkeys(("train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png"), b"")
    layout = recognise(in_memory(contents))
    assert layout is not None
    assert found(layout) == [("a", "1.png", "train"), ("b", "1.png", "train")]
    assert (layout.name, layout.form) == ("split folders", "SPLIT/CLASS/image")
    assert layout.passed_over == ("test/1.png", "test/2.png")


def test_images_that_a_table_does_not_list_are_passed_over() -> None:
    layout = recognise(in_memory({"t.csv": "filename,label\n1.png,a\n", "1.png": b"", "2.png": b""}), "t.csv")
    assert layout is not None
    assert layout.passed_over == ("2.png",)


def test_two_split_folders_beside_another_folder_are_refused_but_one_may_be_a_class() -> None:
    """A train is also something that can be seen."""
    contents = dict.fromkeys(("train/a/1.png", "test/b/1.png", "extra/c/1.png"), b"")
    message = refusal(lambda: recognise(in_memory(contents)))
    assert "folders test, train are named as splits, but extra beside them is not" in message
    assert "data.classes=top" in message
    tops = recognise(in_memory(contents), classes="top")
    assert [c for c, _, _ in found(tops)] == ["extra", "test", "train"]
    vehicles = dict.fromkeys(("train/1.png", "bus/1.png", "car/1.png"), b"")
    assert [c for c, _, _ in rows(vehicles)] == ["bus", "car", "train"]


GROUPS = dict.fromkeys(("pets/cat/1.png", "pets/dog/1.png", "birds/owl/1.png", "birds/owl/2.png"), b"")


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_folders_of_class_folders_need_a_word(prefix: str) -> None:
    contents = {prefix + name: b"" for name in GROUPS} | ({"test/fish/eel/1.png": b""} if prefix else {})
    message = refusal(lambda: recognise(in_memory(contents)))
    count = 4 if prefix else 3
    assert "folder pets has folders of images: pets/cat, pets/dog; choices: " in message
    assert f"leaf ({count} classes, as pets/cat), top ({count - 1} classes, as pets)" in message
    top, leaf = (recognise(in_memory(contents), classes=c) for c in ("top", "leaf"))
    assert sorted({c for c, _, _ in found(top)} - {"fish"}) == ["birds", "pets"]
    assert sorted({c for c, _, _ in found(leaf)} - {"fish/eel"}) == ["birds/owl", "pets/cat", "pets/dog"]
    assert leaf is not None
    assert leaf.form == ("SPLIT/" if prefix else "") + "GROUP/CLASS/image"


# Tables


@pytest.mark.parametrize("where", ["{n}", "images/{n}", "{c}/{n}", "images/{c}/{n}", "anywhere/else/{n}"])
@pytest.mark.parametrize("parent", ["", "parent/"])
def test_a_file_is_found_where_people_put_it(where: str, parent: str) -> None:
    """Beside the table, in images/, in a folder of its class, or wherever a plain name is the only one."""
    contents = {f"{parent}t.csv": table(CLASSES), **images(lambda c, n: parent + where.format(c=c, n=n))}
    assert rows(contents, f"{parent}t.csv") == [(c, n, None) for c, n in ORDER]


def test_rows_may_name_subfolders_and_labels_need_not_be_folders() -> None:
    contents = {"t.csv": "filename,label\nx/1.png,cat\n./x/2.png,dog\ny/1.png,dog\n"}
    contents |= dict.fromkeys(("x/1.png", "x/2.png", "y/1.png"), "")
    assert rows(contents, "t.csv") == [("cat", "1.png", None), ("dog", "1.png", None), ("dog", "2.png", None)]


@pytest.mark.parametrize("folder", ["", "images/"])
def test_a_plain_name_in_several_class_folders_is_that_of_the_row(folder: str) -> None:
    contents = {"t.csv": "filename,label\n1.png,cat\n1.png,dog\n", f"{folder}cat/1.png": "", f"{folder}dog/1.png": ""}
    layout = recognise(in_memory(contents), "t.csv")
    assert layout is not None
    assert [(e.label, e.name) for e in layout.entries] == [("cat", f"{folder}cat/1.png"), ("dog", f"{folder}dog/1.png")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_as_spreadsheets_write_them(encoding: str, end: str) -> None:
    """A byte order mark, line ends of Windows, quoted names with commas and quotes, columns in another order, more."""
    lines = [
        "label,filename,comment,split",
        '"cat, big","a ""b"", c.png",,train',
        'ü,"x\'.png",note,Val',
        "é,z.png,,TEST",
    ]
    contents = {"t.csv": end.join([*lines, ""]).encode(encoding), 'a "b", c.png': b"", "x'.png": b"", "z.png": b""}
    expected = [("cat, big", 'a "b", c.png', "train"), ("é", "z.png", "test"), ("ü", "x'.png", "val")]
    assert rows(contents, "t.csv") == expected


def test_tables_of_a_split_are_those_that_lie_together_and_highest() -> None:
    """Tables of another data set below, or a lone train.csv above, are not taken."""
    other = {f"other/{s}.csv": "filename,label\n1.png,x\n" for s in ("train", "val", "test")}
    assert rows({**below("mini/", RAVI), **below("mini/", other), "train.csv": ""}) == rows(RAVI)


def test_which_of_two_such_places_is_taken_does_not_depend_on_chance() -> None:
    """Strings hash differently in every process: a set's order must not decide."""
    contents = {name: b for i in range(20) for name, b in below(f"copy{i:02d}/", RAVI).items()}
    layout = recognise(in_memory(contents))
    assert layout is not None
    assert {e.name.partition("/")[0] for e in layout.entries} == {"copy00"}


GIVEN = {"1.png": b"", "2.png": b"", "x/3.png": b"", "y/3.png": b""}
WRONG_TABLES: dict[str, tuple[str | bytes, str]] = {
    "no file": ("filename,label\n1.png,a\n9.png,b\n", "t.csv line 3: 9.png is not there"),
    "no file, after an empty line": ("filename,label\n\n1.png,a\n\n9.png,b\n", "t.csv line 5: 9.png is not there"),
    "one of two files": ("filename,label\n1.png,a\n3.png,b\n", "t.csv line 3: 3.png is not there"),
    "a name of two lines": ('filename,label\n1.png,a\n"9\n.png",b\n', "is not there"),
    "no label": ("filename,label\n1.png,a\n2.png,\n", "t.csv line 3: has no label"),
    "no second column": ("filename,label\n1.png,a\n2.png\n", "t.csv line 3: has 1 fields, and the first line names 2"),
    "no filename": ("filename,label\n1.png,a\n,b\n", "t.csv line 3: has no filename"),
    "bad split": (
        "filename,label,split\n1.png,a,train\n2.png,b,extra\n",
        "3: split 'extra'; choices: train, val, test",
    ),
    "empty split": ("filename,label,split\n1.png,a,train\n2.png,b,\n", "3: split ''; choices: train, val, test"),
    "no split in a row": ("filename,label,split\n1.png,a,train\n2.png,b\n", "t.csv line 3: has 2 fields"),
    "no header": ("1.png,a\n2.png,b\n", "t.csv: must begin with a line filename,label or filename,label,split"),
    "other header": ("file,class\n1.png,a\n", "t.csv: must begin with a line filename,label or filename,label,split"),
    "a field too many": ("filename,label\n1.png,a\n2.png,Rana, b\n", "t.csv line 3: has 3 fields, and the first line"),
    "a column twice": ("filename,label,label\n1.png,a,b\n", "t.csv: has the column label twice"),
    "an open quote": ('filename,label\n1.png,"a\n', "t.csv: is not a csv file in UTF-8"),
    "a file elsewhere": ("filename,label\n1.png,a\n/else/2.png,b\n", "line 3: /else/2.png is not below data.root"),
    "a file of another case": ("filename,label\n1.png,a\n2.PNG,b\n", "t.csv line 3: 2.PNG is not there"),
    "header only": ("filename,label\n", "; rows follow"),
    "empty": ("", "t.csv: must begin with a line filename,label"),
    "not UTF-8": ("filename,label\n1.png,é\n".encode("latin1"), "t.csv: is not a csv file in UTF-8"),
    "UTF-16": ("filename,label\n1.png,a\n".encode("utf-16"), "t.csv: is not a csv file in UTF-8"),
    "a huge field": (f"filename,label\n1.png,{'a' * 200_000}\n", "t.csv: is not a csv file in UTF-8"),
    "a file twice": ("filename,label\n1.png,a\n2.png,b\n./1.png,a\n", "1.png is listed 2 times"),
    "a file of two classes": ("filename,label\n1.png,a\n1.png,b\n", "1.png is listed 2 times"),
    "a class in two splits": ("filename,label,split\n1.png,a,train\n2.png,a,test\n", "class a is in both train and"),
    "classes alike": ("filename,label\n1.png,Cat\n2.png,cat\n", "classes 'Cat' and 'cat' differ only in case"),
    "classes alike but for a space": ("filename,label\n1.png,a\n2.png,a \n", "differ only in case or spaces"),
}


@pytest.mark.parametrize("wrong", WRONG_TABLES)
def test_a_table_that_cannot_be_meant_is_refused_in_one_line(wrong: str) -> None:
    content, expected = WRONG_TABLES[wrong]
    assert expected in refusal(lambda: recognise(in_memory({"t.csv": content, **GIVEN}), "t.csv"))


def test_a_row_never_means_another_file_of_its_name_in_another_folder() -> None:
    """cat/1.png is missing: dog/1.png, which is not listed, must not become a cat."""
    contents = {"t.csv": "filename,label\ncat/1.png,cat\ndog/2.png,dog\n", "dog/1.png": b"", "dog/2.png": b""}
    assert "cat/1.png is not there" in refusal(lambda: recognise(in_memory(contents), "t.csv"))


def test_a_csv_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SettingError) as caught:
        recognise(in_memory({**CSV, "sub/u.csv": b""}), "x.csv")
    assert (caught.value.key, caught.value.value) == ("csv", "x.csv")
    assert "choices: sub/u.csv, t.csv" in caught.value.expected
    assert "choices: none" in refusal(lambda: recognise(in_memory(BY_CLASS), "x.csv"))


def test_a_class_in_two_of_ravis_tables_is_refused() -> None:
    contents: Names = {**RAVI, "val.csv": "filename,label\nd.bmp,ox\n"}
    assert "class ox is in both train and val" in refusal(lambda: recognise(in_memory(contents)))


def test_a_row_of_ravis_tables_without_an_image_is_named_with_its_table() -> None:
    contents = {name: content for name, content in RAVI.items() if name != "images/e.webp"}
    assert "/data/test.csv line 2: e.webp is not there" in refusal(lambda: recognise(in_memory(contents)))


def test_splits_of_images_instead_of_classes_are_refused() -> None:
    """As ImageNet has them: train and val with the same thousand classes."""
    contents = dict.fromkeys(("train/a/1.png", "train/b/1.png", "val/a/2.png", "val/b/2.png"), b"")
    assert "class a is in both train and val" in refusal(lambda: recognise(in_memory(contents)))


def test_class_folders_that_differ_only_in_case_are_refused() -> None:
    """Where names have no case they would be one folder. Of several pairs, the two of a pair are named."""
    contents = dict.fromkeys(("Cat/1.png", "Dog/1.png", "cat/1.png", "dog/1.png", "eel/1.png"), b"")
    assert "classes 'Cat' and 'cat' differ" in refusal(lambda: recognise(in_memory(contents)))
