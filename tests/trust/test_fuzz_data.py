"""Files of data and weights from anywhere: a data set or tensors, or one line, within a second and 600 MB."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fuzzing import DAMAGE, JSON, damaged, fuzzed, limited_memory
from hypothesis import strategies as st
from torch import nn

from metarun.data.arrays import arrays
from metarun.data.columns import NUMERIC, read_columns
from metarun.data.row_groups import Grouping
from metarun.data.rows import RowData
from metarun.data.table import table
from metarun.data.windows import windows
from metarun.errors import UserError
from metarun.models.weights import _load
from metarun.report.read.details import read_details
from metarun.report.read.files import read_analyses
from metarun.types import EpisodeSpec

SLOWEST = 10.0  # seconds of a case
MEMORY = 600  # MB beyond what the process has
LONGEST = 2000  # characters of a message


@contextlib.contextmanager
def sound() -> Iterator[None]:
    """A result, or one line of bounded length; no other error, no hang, no memory without end."""
    began = time.process_time()  # not the clock: a busy machine is no hang
    with limited_memory(MEMORY):
        try:
            yield
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < LONGEST  # noqa: PT017
    assert time.process_time() - began < SLOWEST


def use(data: RowData) -> None:
    """What is read can be drawn from, and is finite."""
    assert bool(data.x.float().isfinite().all())
    assert data.y is None or bool(data.y.isfinite().all())
    spec = EpisodeSpec(min(2, data.most_ways) if data.y is None else 1, 1, 1)
    data.check("train", spec)
    data.episodes("train", 0, 0, range(2), spec)
    json.dumps(data.facts())


LONG = "1" * 100_000
CELLS = st.sampled_from(
    ["1", "2.5", "-3", "1,5", "1e400", "nan", "", " ", "a", "=cmd()", "\0", "\x1b[2J", "\ufeff", "é", '"', '""',
     "train", "val", "test", "1_0", "0x1", "1e308", "-1e308", "inf", "x" * 140_000, LONG, LONG + "x", "," * 50, "\r",
     "\u2028"]
) | st.text(max_size=6)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "label", "task", "split", "y", "t", "", "a", "\0", "1.5", "=1", LONG + "x"])


def sheet(head: list[str], rows: list[list[str]], delimiter: str, width: int) -> str:
    return "\n".join(delimiter.join(row) for row in [head, *(row[:width] for row in rows)])


SHEETS = st.builds(
    sheet, st.lists(NAMES, min_size=1, max_size=5), st.lists(st.lists(CELLS, min_size=5, max_size=5), max_size=12),
    st.sampled_from([",", ";", "\t"]), st.integers(3, 5),
)  # fmt: skip
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252", "utf-7"]
CLASSES = "a,b,label,split\n" + "".join(f"{i},{i % 4},c{i % 9},\n".replace(",\n", "\n") for i in range(36)).replace(
    "\n", ",train\n"
)


@fuzzed(40, text=SHEETS | st.just(CLASSES), encoding=st.sampled_from(ENCODINGS), damage=DAMAGE, label=st.booleans())
def test_tables(tmp_path: Path, text: str, encoding: str, damage: Any, label: bool) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(damaged(text.encode(encoding, "replace"), *damage))
    chosen: dict[str, Any] = (
        {"label": "label", "y": None, "task": None} if label else {"label": None, "y": "y", "task": "t"}
    )
    with sound():
        use(table(str(path), None, split=None, grouping=Grouping(scale="auto"), **chosen))


@fuzzed(40, text=SHEETS, damage=DAMAGE, length=st.integers(1, 3), horizon=st.integers(0, 2))
def test_tables_of_recordings(tmp_path: Path, text: str, damage: Any, length: int, horizon: int) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(damaged(text.encode(), *damage))
    with sound():
        use(windows(str(path), "label", "task", "split", length, None, horizon, False, Grouping()))


def npy(descr: Any, shape: Any, content: bytes, order: Any = False, head: str | None = None) -> bytes:
    """A file of NumPy whose header is made by hand."""
    made = head or repr({"descr": descr, "fortran_order": order, "shape": shape})
    text = made.encode("latin-1", "replace")[:60_000]
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n" + content


def whole_npy(array: Any) -> bytes:
    np.save(buffer := io.BytesIO(), array)
    return buffer.getvalue()


X, LABEL = np.arange(90.0).reshape(45, 2), np.repeat([f"c{i}" for i in range(9)], 5)
TYPES = st.sampled_from(
    ["<f8", "<f4", "<f2", ">u2", "|u1", "|b1", "<c8", "|O", "<U9", "|S3", "<M8[s]", "|V8", "<f16", "<U500000000", "?",
     "", 3, [("a", "<f8")], [("a", "|O")], ("<f8", (2,)), "<f8, (10,)f4", None]
)  # fmt: skip
SIZES = st.integers(-2, 50) | st.sampled_from([2**31, 2**40, 2**62, 2**63, 10**30, True, None, 1.5])
SHAPES = st.lists(SIZES, max_size=5).map(tuple) | st.just((45, 2)) | st.just((1,) * 70)
HEADS = st.none() | st.sampled_from(["(" * 5000, "{'descr': ", "x" * 20_000, "[" * 90 + "]" * 90, "__import__('os')"])
MEMBERS = st.builds(npy, TYPES, SHAPES, st.binary(max_size=400), st.booleans(), HEADS) | st.binary(max_size=20)
KEYS = st.sampled_from(["x.npy", "label.npy", "y.npy", "task.npy", "split.npy", "x", "arr_0.npy", "arr_" + "9" * 5000])


@fuzzed(
    60,
    members=st.dictionaries(KEYS, MEMBERS, max_size=3),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
    damage=DAMAGE,
)
def test_npz(tmp_path: Path, members: dict[str, bytes], method: int, damage: Any) -> None:
    with zipfile.ZipFile(path := tmp_path / "a.npz", "w", method) as archive:
        for name, content in ({"x.npy": whole_npy(X), "label.npy": whole_npy(LABEL)} | members).items():
            archive.writestr(name, content)
    path.write_bytes(damaged(path.read_bytes(), *damage))
    with sound():
        use(arrays(str(path), "x", "y", "task", "label", "split", "auto", Grouping()))
    with sound():
        use(windows(str(path), "label", "task", "split", 1, None, 1, False, Grouping()))


@fuzzed(60, content=MEMBERS, damage=DAMAGE)
def test_folders_of_npy(tmp_path: Path, content: bytes, damage: Any) -> None:
    (tmp_path / "f").mkdir(exist_ok=True)
    (tmp_path / "f/label.npy").write_bytes(whole_npy(LABEL))
    (tmp_path / "f/x.npy").write_bytes(damaged(content, *damage) if content else b"")
    with sound():
        use(arrays(str(tmp_path / "f"), "x", "y", "task", "label", "split", "auto", Grouping()))


KINDS = st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E4M3", "F4", "I64", "U8", "BOOL", "C64", "XX", None, 3])
OFFSETS = st.lists(st.sampled_from([0, 8, 180, 360, 540, 2**40, -1, 2**64]), min_size=2, max_size=2)
ENTRIES = st.fixed_dictionaries({"dtype": KINDS, "shape": SHAPES.map(list), "data_offsets": OFFSETS}) | JSON
STORED = {
    "x": {"dtype": "F32", "shape": [45, 1], "data_offsets": [0, 180]},
    "label": {"dtype": "I64", "shape": [45], "data_offsets": [180, 540]},
}
NUMBERS = np.arange(45, dtype=np.float32).tobytes() + np.repeat(np.arange(9), 5).astype(np.int64).tobytes()
LENGTHS = st.none() | st.sampled_from([0, 1, 10**8, 10**9, 2**63, 2**64 - 1])


@fuzzed(60, entries=st.dictionaries(st.sampled_from(["x", "label", "__metadata__"]), ENTRIES, max_size=2),
        length=LENGTHS, damage=DAMAGE)  # fmt: skip
def test_safetensors(tmp_path: Path, entries: dict[str, Any], length: int | None, damage: Any) -> None:
    pytest.importorskip("safetensors")
    head = json.dumps(STORED | entries).encode()
    path = tmp_path / "a.safetensors"
    whole = struct.pack("<Q", len(head) if length is None else length) + head + NUMBERS
    path.write_bytes(damaged(whole, *damage))
    with sound():
        use(arrays(str(path), "x", "y", "task", "label", "split", "auto", Grouping()))
    with sound():
        _load(nn.Linear(1, 1), "net", path)


ODD: dict[str, Callable[[], Any]] = {
    "whole": lambda: torch.ones(2, 3),
    "expanded": lambda: torch.zeros(1).expand(10**6, 10**6),
    "expanded to fit": lambda: torch.zeros(1).expand(2, 3),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "without memory": lambda: torch.zeros(10**6, 10**6, device="meta"),
    "complex": lambda: torch.zeros(2, 3, dtype=torch.complex64),
    "whole numbers": lambda: torch.zeros(2, 3, dtype=torch.int64),
    "8 bits": lambda: torch.zeros(2, 3).to(torch.float8_e4m3fn),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "parameter": lambda: nn.Parameter(torch.ones(2, 3)),
}


@fuzzed(60, odd=st.sampled_from(sorted(ODD)), wrap=st.sampled_from(["", "state_dict", "model"]), legacy=st.booleans(),
        damage=DAMAGE | st.just(((), 0)), more=JSON)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_weights(tmp_path: Path, odd: str, wrap: str, legacy: bool, damage: Any, more: Any) -> None:
    state = {"weight": ODD[odd](), "bias": torch.zeros(2), "more": more}
    with contextlib.suppress(Exception):  # what torch cannot store
        torch.save(
            {wrap: state} if wrap else state, path := tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy
        )
        path.write_bytes(damaged(path.read_bytes(), *damage))
    if (tmp_path / "w.pt").exists():
        with sound():
            _load(nn.Linear(3, 2), "net", tmp_path / "w.pt")


@fuzzed(40, text=SHEETS, damage=DAMAGE)
def test_tables_of_a_run_that_is_reported(tmp_path: Path, text: str, damage: Any) -> None:
    (tmp_path / "analyses/a").mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "details.csv", tmp_path / "analyses/a/results.csv"):
        path.write_bytes(damaged(("class,predicted,picture,task\n" + text).encode(), *damage))
    with sound():
        read_details(tmp_path / "details.csv")
        read_analyses(tmp_path / "analyses")


@fuzzed(60, damage=DAMAGE)
def test_parquet(tmp_path: Path, damage: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="reads parquet")
    from pyarrow import parquet

    columns = {"a": X[:, 0], "label": LABEL, "list": [[1.0]] * 45}
    parquet.write_table(pyarrow.table(columns), path := tmp_path / "t.parquet")
    path.write_bytes(damaged(path.read_bytes(), *damage))
    with sound():
        use(table(str(path), ["a"], None, None, "label", None, Grouping()))
    with sound():
        table(str(path), None, None, None, "label", None, Grouping())


def test_a_small_parquet_of_many_equal_rows_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="reads parquet")
    from pyarrow import parquet

    part = pyarrow.table({"a": np.zeros(10**6), "b": np.zeros(10**6)})
    with parquet.ParquetWriter(path := tmp_path / "t.parquet", part.schema) as writer:
        for _ in range(20):
            writer.write_table(part)
    assert path.stat().st_size < 10**6
    with pytest.raises(UserError, match="its columns have more than 100 times its size"), limited_memory(MEMORY):
        read_columns(path)


def test_parquet_whose_columns_have_one_name(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="reads parquet")
    from pyarrow import parquet

    twice = pyarrow.Table.from_arrays([pyarrow.array([1.0]), pyarrow.array([2.0])], names=["a", "a"])
    parquet.write_table(twice, path := tmp_path / "t.parquet")
    with pytest.raises(UserError, match="a names two columns"):
        read_columns(path)


def test_a_bomb_of_arrays_is_refused(tmp_path: Path) -> None:
    archive = zipfile.ZipFile(path := tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("x.npy", "w", force_zip64=True) as member:
        member.write(npy("<f8", (40, 10**6), b""))
        for _ in range(40):
            member.write(bytes(8 * 10**6))
    with pytest.raises(UserError, match="its contents have more than 100 times its size"), limited_memory(MEMORY):
        arrays(str(path), "x", "y", "task", "label", "split", "auto", Grouping())


@pytest.mark.parametrize(
    "head",
    ["x" * 10**7 + ",label", ",".join(f"c{i}" for i in range(30_000)) + ",label", "1.5," + LONG + "x,label"],
    ids=["field", "columns", "digits"],
)
def test_wide_and_long_first_lines(tmp_path: Path, head: str) -> None:
    row = ",".join("1" for _ in range(head.count(",")))
    (tmp_path / "t.csv").write_text(head + "".join(f"\n{row},c{i % 9}" for i in range(18)))
    with sound():
        use(table(str(tmp_path / "t.csv"), None, None, None, "label", None, Grouping()))


def test_one_long_label_among_many_rows(tmp_path: Path) -> None:
    """An array of text would have 20 000 x 100 000 characters."""
    rows = "".join(f"\n{i % 7},{LONG if i < 40 else f'c{i % 9}'}" for i in range(20_000))
    (tmp_path / "t.csv").write_text("a,label" + rows)
    with limited_memory(MEMORY):
        data = table(str(tmp_path / "t.csv"), None, None, None, "label", None, Grouping())
    assert LONG in data.groups.names


def test_a_number_that_is_none_takes_no_time_to_find_out() -> None:
    began = time.process_time()  # not the clock: a busy machine is no hang
    assert not NUMERIC.fullmatch("1" * 130_000 + "x")
    assert [bool(NUMERIC.fullmatch(text)) for text in ("1.234,5", " -.5e-3 ", "1", ".", "1.x", "1e", "+,5")] == [
        *(True, True, True, False, False, False, True)
    ]  # fmt: skip
    assert time.process_time() - began < SLOWEST


@pytest.mark.parametrize("name", ["=cmd()", "+1+cmd", "@x", "-a", "\t=1"])
def test_tables_that_a_job_writes_hold_no_formulas(tmp_path: Path, name: str) -> None:
    from metarun.analyses.analysis import write_csv
    from metarun.storage.run_folder import RunFolder

    row = {"picture": name, "class": name, "predicted": name, name: -1.5}
    RunFolder(tmp_path).write_table("details.csv", [row])
    write_csv(tmp_path / "results.csv", [row])
    for file in ("details.csv", "results.csv"):
        cells = [cell for line in csv.reader(io.StringIO((tmp_path / file).read_text())) for cell in line]
        assert not [cell for cell in cells if cell.lstrip()[:1] in "=+@" or cell.lstrip().startswith("-a")]
        assert "-1.5" in cells
    if not name.startswith("\t"):
        assert read_details(tmp_path / "details.csv").confusion == {(name, name): 1}
