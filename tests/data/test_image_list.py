"""Tables of images: fields, separators and paths as spreadsheets, scripts and other systems write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.image_files import as_folder, in_memory

from metarun.data.files import open_files
from metarun.data.image_list import Entry, as_name, read_table

IMAGES = ["images/a.png", "images/b c.png", "other/A.png"]


def listed(table: str | bytes) -> list[tuple[str, str]]:
    files = in_memory({"t.csv": table, **dict.fromkeys(IMAGES, b"")})
    return [(entry.name, entry.label) for entry in read_table(files, "t.csv", IMAGES)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators_line_ends_and_a_byte_order_mark(delimiter: str, end: str, mark: str) -> None:
    rows = [("Filename ", " LABEL"), ("a.png", f'"Rana{delimiter} a"'), ("images/b c.png", '"the ""b"""')]
    table = mark + end.join(delimiter.join(row) for row in rows) + end
    assert listed(table) == [("images/a.png", f"Rana{delimiter} a"), ("images/b c.png", 'the "b"')]


@pytest.mark.parametrize(
    "path",
    ["./images/a.png", "images/../images/./a.png", "images//a.png", "images\\a.png", ".\\images\\a.png", " a.png"],
)
def test_a_path_is_compared_as_a_path(path: str) -> None:
    assert listed(f"filename,label\n{path},x\n") == [("images/a.png", "x")]


def test_the_case_of_a_name_is_kept() -> None:
    assert listed("filename,label\nA.png,x\na.png,x\n") == [("other/A.png", "x"), ("images/a.png", "x")]


@pytest.mark.parametrize("link", [False, True])
def test_absolute_paths_below_the_root_are_found(tmp_path: Path, link: bool) -> None:
    """Also where the root is a link to the folder that the table names, and the other way round."""
    real = as_folder(tmp_path / "real", {"sub/images/1.png": b"", "sub/images/2.png": b""})
    (tmp_path / "link").symlink_to(real)
    root, named = (tmp_path / "link", real) if link else (real, real)
    (real / "sub/t.csv").write_text(f"filename,label\n{named}/sub/images/1.png,a\n{named}/sub/./images/2.png,b\n")
    files = open_files(root)
    images = [name for name in files.names if name.endswith(".png")]
    expected = [Entry("a", "sub/images/1.png", None), Entry("b", "sub/images/2.png", None)]
    assert read_table(files, "sub/t.csv", images) == expected
    assert read_table(files, str(root / "sub/t.csv"), images) == expected
    assert read_table(files, "./sub/../sub/t.csv", images) == expected


def test_a_path_elsewhere_stays_as_it_is() -> None:
    assert as_name(Path("/data/set"), "/data/set2/1.png") == "/data/set2/1.png"
    assert as_name(Path("/data/set"), "../1.png") == "../1.png"


@pytest.mark.parametrize(
    ("called", "split"),
    [
        *(("Training", "train"), ("meta-train", "train"), ("base", "train"), ("valid", "val"), ("dev", "val")),
        *(("metaval", "val"), ("eval", "test"), ("meta_test", "test"), ("novel", "test"), (" test ", "test")),
    ],
)
def test_splits_by_their_usual_names(called: str, split: str) -> None:
    files = in_memory({"t.csv": f"filename,label,split\na.png,x,{called}\n", "a.png": b""})
    assert [entry.split for entry in read_table(files, "t.csv", ["a.png"])] == [split]
