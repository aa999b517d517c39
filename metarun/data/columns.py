"""The columns of a table: a csv file, a parquet file or a DataFrame. Every error names file, line and column.

A csv has the names of its columns in its first line, and commas, semicolons or tabs between them: what splits the first
line into most. It is UTF-8, with or without a byte order mark. With semicolons or tabs, numbers may have decimal
commas.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarun.data.files import MOST_TIMES, SUSPECT
from metarun.errors import SettingError, UserError, nearest, one_line
from metarun.storage.text import shorten

DELIMITERS = (",", ";", "\t")
PARQUET = (".parquet", ".pq")
PARQUET_ROWS = 4096  # that are read at a time
LONGEST_REASON = 200  # characters of a library's message
MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
"""Cells that stand for no number, in small letters."""

COMMAS = "decimal commas are read where ; or tabs are between the columns and the column has no dots"
# Each part of these begins with what the one before cannot end with: else a long cell takes hours.
NUMERIC = re.compile(r"\s*[+-]?[.,]*\d[\d.,]*(e[+-]?\d+)?\s*", re.IGNORECASE)
BARE_NUMBER = re.compile(r"[+-]?\d*([.]\d*)?(e[+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*")


class Columns(NamedTuple):
    """Columns by name; each has a value for every row."""

    values: dict[str, Any]
    place: Callable[[int], str]  # row -> `tasks.csv, line 7`
    decimal_commas: bool = False  # a comma in a number may be one

    def find(self, key: str, name: str) -> str:
        """The name itself. Raise `SettingError` of the setting `key` if there is no such column."""
        if name not in self.values:
            raise SettingError(key, name, f"there is no such column, {nearest(name, filter(None, self.values))}")
        return name

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> Columns:
        """These rows alone."""
        values = {name: [column[row] for row in rows] for name, column in self.values.items()}
        return self._replace(values=values, place=lambda row: self.place(int(rows[row])))

    def numbers(self, names: Sequence[str]) -> NDArray[np.float64]:
        """[n, D]. Raise `UserError` at a missing value and at text."""
        return np.stack([self._read_numbers(name) for name in names], 1)

    def words(self, name: str) -> list[str]:
        """A column as text. Raise `UserError` at a missing value."""
        words = []
        for row, value in enumerate(self.values[name]):
            if is_missing(value):
                raise UserError(f"{self.place(row)}: column {shorten(name)} is empty; every row needs a value")
            words.append(str(value).strip())
        return words

    def first_word(self, name: str) -> str | None:
        """The first cell of a column of words; None if a cell is a number, or would be one without its commas."""
        cells = [value for value in self.values[name] if not is_missing(value)]
        if not cells or not all(isinstance(value, str) for value in cells):
            return None
        return None if any(NUMERIC.fullmatch(value) for value in cells) else shorten(cells[0].strip())

    def _read_numbers(self, name: str) -> NDArray[np.float64]:
        values = self.values[name]
        try:
            found = np.asarray(values, dtype=np.float64)
            dated = getattr(np.asarray(values), "dtype", np.dtype(float)).kind in "mM"
        except (TypeError, ValueError):
            return self._parse_numbers(name)
        return found if not (dated or np.isnan(found).any()) else self._parse_numbers(name)

    def _parse_numbers(self, name: str) -> NDArray[np.float64]:
        """The same, cell by cell, to read decimal commas and to say which cell is wrong."""
        values = list(self.values[name])
        texts = [value for value in values if isinstance(value, str)]
        commas = self.decimal_commas and not any("." in text for text in texts)
        found = np.empty(len(values))
        for row, value in enumerate(values):
            at = f"{self.place(row)}: column {shorten(name)}"
            if is_missing(value) or str(value).strip().lower() in MISSING:
                raise UserError(f"{at} has no value; fill it or remove the row")
            if commas and isinstance(value, str) and DECIMAL_COMMA.fullmatch(value):
                value = value.replace(",", ".")
            try:
                found[row] = float(value)
            except (TypeError, ValueError) as error:
                comma = isinstance(value, str) and "," in value
                hint = (
                    "; decimal commas are read with ; or tabs between columns, and no dots beside them" if comma else ""
                )
                raise UserError(f"{at} holds {shorten(value)!r}, which is no number{hint}") from error
        return found


def is_missing(value: Any) -> bool:
    """Whether a cell is empty, None, NaN, or the missing value of a library."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA has no truth value
        return True
    except ValueError:  # a cell of parquet may hold a list
        return False


def read_columns(path: Path) -> Columns:
    """The columns of a csv or parquet file."""
    try:
        return _read_parquet(path) if path.suffix.lower() in PARQUET else _read_csv(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error


def frame_columns(frame: Any) -> Columns:
    """The columns of a DataFrame of pandas or polars."""
    repeated = [name for name, times in Counter(map(str, frame.columns)).items() if times > 1]
    if repeated:
        raise UserError(f"the DataFrame has {repeated[0]!r} as the name of two columns")
    return Columns({str(name): frame[name].to_numpy() for name in frame.columns}, lambda row: f"DataFrame, row {row}")


def _read_parquet(path: Path) -> Columns:
    try:
        from pyarrow import ArrowException, parquet  # optional, and slow to load
    except ImportError as error:
        raise UserError(f"{path}: parquet needs pyarrow: pip install 'metarun[table]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            table = _read_batches(path, file)
        names = table.column_names
        values = {name: table.column(at).to_numpy() for at, name in enumerate(names)}
    except (ArrowException, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is not a readable parquet file ({shorten(one_line(error), LONGEST_REASON)})"
        ) from error
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise UserError(f"{path}: {shorten(repeated[0])} names two columns; every column needs a name of its own")
    return _check_rows(path, Columns(values, lambda row: f"{path}, row {row}"))


def _read_batches(path: Path, file: Any) -> Any:
    """The table of a parquet file, part by part. Raise `ValueError` before it fills the memory: a file of 1 kB can hold
    a billion equal rows."""
    from pyarrow import Table

    most, size, batches = max(SUSPECT, MOST_TIMES * path.stat().st_size), 0, []
    for batch in file.iter_batches(batch_size=PARQUET_ROWS):
        batches.append(batch)
        size += batch.nbytes
        if size > most:
            raise ValueError(f"its columns have more than {MOST_TIMES} times its size")
    return Table.from_batches(batches, file.schema_arrow)


def _read_csv(path: Path) -> Columns:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(DELIMITERS, key=lambda d: len(_split_line(first, d)))
            file.seek(0)
            return _check_rows(path, _read_rows(path, csv.reader(file, delimiter=delimiter, strict=True), delimiter))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; save it as csv with the encoding UTF-8") from error


def _split_line(line: str, delimiter: str) -> list[str]:
    """The fields of a csv line; none if a field would be longer than what csv reads, with the wrong delimiter."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _read_rows(path: Path, reader: Any, delimiter: str) -> Columns:
    rows: list[list[str]] = []
    lines: list[int] = []
    names: list[str] = []
    line = 1  # where the record begins that is read next
    try:
        for cells in reader:
            if names and len(cells) not in (0, len(names)):
                hint = _explain_count(cells, names, delimiter)
                raise UserError(f"{path}, line {line}: has {len(cells)} fields, the first line has {len(names)}{hint}")
            if cells and names:
                rows.append(cells)
                lines.append(line)
            elif cells:
                names = _check_header(path, line, [cell.strip() for cell in cells])
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: {one_line(error)}; check its quotes") from error
    values = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    return Columns(values, lambda row: f"{path}, line {lines[row]}", delimiter != ",")


def _explain_count(cells: list[str], names: list[str], delimiter: str) -> str:
    return "; a comma inside of a field needs quotes" if delimiter == "," and len(cells) > len(names) else ""


def _check_header(path: Path, line: int, names: list[str]) -> list[str]:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        what = f"{shorten(repeated[0])} names two columns" if repeated[0] else "two columns have no name"
        raise UserError(f"{path}, line {line}: {what}; every column needs a name of its own")
    if all(BARE_NUMBER.fullmatch(name) for name in names) and any("." in n for n in names):
        raise UserError(f"{path}, line {line}: holds numbers; the first line must name the columns")
    return names


def _check_rows(path: Path, columns: Columns) -> Columns:
    if not columns.values:
        raise UserError(f"{path}: is empty; the first line must name the columns")
    if not len(next(iter(columns.values.values()))):
        raise UserError(f"{path}: has no rows below the names of its columns")
    return columns
