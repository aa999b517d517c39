"""Tables as people save them: what is read, and the line that each mistake gets."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from metarun.data.columns import Columns, frame_columns, read_columns
from metarun.errors import SettingError, UserError

SAME = {
    "plain": b"a,b,name\n1,2.5,x\n-3,4e1,y\n",
    "byte order mark": b"\xef\xbb\xbfa,b,name\n1,2.5,x\n-3,4e1,y\n",
    "CRLF": b"a,b,name\r\n1,2.5,x\r\n-3,4e1,y\r\n",
    "quotes": b'"a","b","name"\n"1","2.5","x"\n"-3","4e1","y"\n',
    "semicolons": b"a;b;name\n1;2.5;x\n-3;4e1;y\n",
    "tabs": b"a\tb\tname\n1\t2.5\tx\n-3\t4e1\ty\n",
    "decimal commas": b"a;b;name\n1;2,5;x\n-3;40,0;y\n",
    "blanks": b"a, b ,name\n1, 2.5,x \n\n-3,4e1,y\n\n",
    "no last line end": b"a,b,name\n1,2.5,x\n-3,4e1,y",
}


def read(tmp_path: Path, content: bytes, name: str = "t.csv") -> Columns:
    (tmp_path / name).write_bytes(content)
    return read_columns(tmp_path / name)


@pytest.mark.parametrize("content", SAME.values(), ids=SAME)
def test_every_dialect_gives_the_same_columns(tmp_path: Path, content: bytes) -> None:
    columns = read(tmp_path, content)
    assert columns.numbers(["a", "b"]).tolist() == [[1, 2.5], [-3, 40]]
    assert columns.words("name") == ["x", "y"]


def test_a_quoted_field_may_have_delimiters_and_line_ends(tmp_path: Path) -> None:
    columns = read(tmp_path, b'name,a\n"x, ""the"" first\nof two",1\ny,z\n')
    assert columns.words("name") == ['x, "the" first\nof two', "y"]
    with pytest.raises(UserError, match=r"t.csv, line 4: column a holds 'z'"):
        columns.numbers(["a"])


def test_the_unnamed_first_column_of_a_data_frame_is_no_obstacle(tmp_path: Path) -> None:
    assert read(tmp_path, b",a\n0,5\n1,6\n").numbers(["a"]).tolist() == [[5], [6]]


FILES = {
    "empty": (b"", "t.csv: is empty; the first line must name the columns"),
    "names alone": (b"a,b\n", "t.csv: has no rows below the names of its columns"),
    "two names": (b"a,b,a\n1,2,3\n", "t.csv, line 1: a names two columns; every column needs a name of its own"),
    "numbers for names": (b"1.5,2.5\n1,2\n", "t.csv, line 1: holds numbers; the first line must name the columns"),
    "surplus": (b"a,b\n1,2\n1,2,3\n", "t.csv, line 3: has 3 fields, the first line has 2; a comma inside of a field"),
    "missing": (b"a;b\n1;2\n\n3\n", "t.csv, line 4: has 1 fields, the first line has 2"),
    "open quote": (b'a,b\n1,2\n3,"4\n', "t.csv, line 3: unexpected end of data; check its quotes"),
    "latin-1": (b"a,b\n1,\xe4\n", "t.csv: is not UTF-8 text; save it as csv with the encoding UTF-8"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_each_wrong_file_gets_a_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, content)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


CELLS = {
    "empty": ("a,b\n1,2\n,3\n", "t.csv, line 3: column a has no value; fill it or remove the row"),
    "NA": ("a,b\n1,2\n1,2\nNA,3\n", "t.csv, line 4: column a has no value"),
    "nan": ("a,b\nnan,3\n", "t.csv, line 2: column a has no value"),
    "text": ("a,b\n1,2\ntall,3\n", "t.csv, line 3: column a holds 'tall', which is no number"),
    "thousands": ('a,b\n"1,234",3\n', "t.csv, line 2: column a holds '1,234', which is no number; decimal commas are"),
    "dots and commas": ("a;b\n1.5;2\n1.234,5;3\n", "t.csv, line 3: column a holds '1.234,5', which is no number"),
}


@pytest.mark.parametrize(("content", "message"), CELLS.values(), ids=CELLS)
def test_each_wrong_cell_gets_a_line(tmp_path: Path, content: str, message: str) -> None:
    columns = read(tmp_path, content.encode())
    with pytest.raises(UserError) as error:
        columns.numbers(["a"])
    assert message in str(error.value)


def test_a_column_of_words_is_told_from_one_with_a_wrong_cell(tmp_path: Path) -> None:
    columns = read(tmp_path, b'a;b;c;d;e\nred;1,5;2026-01-02;1;"1,234,5"\n;NA;;x;y\n')
    firsts = {name: columns.first_word(name) for name in columns.values}
    assert firsts == {"a": "red", "b": None, "c": "2026-01-02", "d": None, "e": None}


def test_a_class_or_task_is_never_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t.csv, line 3: column name is empty; every row needs a value"):
        read(tmp_path, b"name,a\nx,1\n ,2\n").words("name")


def test_an_unknown_column_has_the_nearest_name(tmp_path: Path) -> None:
    columns = read(tmp_path, b"width,height\n1,2\n")
    with pytest.raises(SettingError, match="x=widht: there is no such column, did you mean width"):
        columns.find("x", "widht")


class Frame:
    """A DataFrame as far as metarun looks at one."""

    def __init__(self, **columns: list[object]) -> None:
        self.columns = list(columns)
        self.values = columns

    def __getitem__(self, name: str) -> Frame:
        return Frame(**{name: self.values[name]})

    def to_numpy(self) -> np.ndarray:
        (values,) = self.values.values()
        kept = np.empty(len(values), object)
        kept[:] = values
        return kept if any(v is None or isinstance(v, str) for v in values) else np.array(values)


def test_a_data_frame_has_the_same_columns_and_names_its_rows() -> None:
    columns = frame_columns(Frame(a=[1, 2], b=[0.5, None], name=["x", None]))
    assert columns.numbers(["a"]).tolist() == [[1], [2]]
    with pytest.raises(UserError, match="DataFrame, row 1: column b has no value"):
        columns.numbers(["b"])
    with pytest.raises(UserError, match="DataFrame, row 1: column name is empty"):
        columns.words("name")


def test_dates_are_no_numbers() -> None:
    columns = frame_columns(Frame(day=[np.datetime64("2026-01-01")] * 2))  # type: ignore[list-item]
    with pytest.raises(UserError, match="DataFrame, row 0: column day holds '2026-01-01'"):
        columns.numbers(["day"])


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"t.parquet: parquet needs pyarrow: pip install 'metarun\[table\]'"):
        read(tmp_path, b"PAR1", "t.parquet")


def test_parquet_has_the_columns_of_the_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="reads parquet")
    from pyarrow import parquet

    table = pyarrow.table({"a": [1, -3], "b": [2.5, 40.0], "name": ["x", "y"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    columns = read_columns(tmp_path / "t.parquet")
    assert columns.numbers(["a", "b"]).tolist() == [[1, 2.5], [-3, 40]]
    assert columns.words("name") == ["x", "y"]
    with pytest.raises(UserError, match=r"t.parquet: is not a readable parquet file"):
        read(tmp_path, b"PAR1 and no more", "t.parquet")
