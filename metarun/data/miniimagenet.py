"""miniImageNet (Vinyals et al. 2016): its published split, and its pickles, read without executing anything in them.

mini-imagenet-cache-{train,val,test}.pkl hold `image_data`, uint8 [n, H, W, 3], and `class_dict`, class -> row indices.
A pickle may name any function to be called; the reader allows only those that make NumPy arrays and plain containers,
and raises at the first other name.

RAVI has the ImageNet ids of its classes in the split of Ravi and Larochelle 2017: 64 / 16 / 20.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from operator import index
from typing import Any, cast

import numpy as np

from metarun.compute.random import SPLITS
from metarun.data.files import Files
from metarun.data.image_list import Entry
from metarun.data.layouts import Layout, make_layout
from metarun.errors import UserError, one_line
from metarun.types import Split

NAME = "mini-imagenet-cache-{}.pkl"
LARGEST = 1 << 34  # bytes; the largest of miniImageNet has 8e8
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "b1")


def read_pickles(files: Files) -> tuple[Layout, Callable[[Iterable[Entry]], Iterator[np.ndarray]]] | None:
    """The pickles as a layout, of those splits that are there, and a function that reads its entries; None if the
    files include no pickles."""
    names = {split: next((n for n in files.names if n.endswith(NAME.format(split))), None) for split in SPLITS}
    parts = {split: _load(files, name) for split, name in names.items() if name is not None}
    if not parts:
        return None
    entries = [
        Entry(label, f"{split}/{row:08d}", split)
        for split, (_, rows_of) in parts.items()
        for label, rows in rows_of.items()
        for row in rows
    ]

    def read(wanted: Iterable[Entry]) -> Iterator[np.ndarray]:
        for entry in wanted:
            split, row = entry.name.split("/")
            yield parts[cast(Split, split)][0][int(row)]

    return make_layout("pickles", entries, form="class_dict of " + ", ".join(filter(None, names.values()))), read


def _load(files: Files, file: str) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Return `image_data` and `class_dict` of one pickle. Raise `UserError` if they are not as described above."""
    where = files.path / file
    try:
        stored = HarmlessUnpickler(io.BytesIO(next(files.read([file], LARGEST))), encoding="latin1").load()
        images = _as_array(stored["image_data"])
        rows_of = {}
        for label, rows in stored["class_dict"].items():
            name = label.decode() if isinstance(label, bytes) else str(label)
            rows_of[name] = [index(row) for row in _as_array(rows).tolist()]
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{where}: is not a readable pickle of images ({reason})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"{where}: image_data is {images.dtype} {list(images.shape)}, not uint8 [n, H, W, 3]")
    beyond = [row for rows in rows_of.values() for row in rows if not 0 <= row < len(images)]
    if beyond:
        raise UserError(f"{where}: class_dict names row {beyond[0]}, but image_data has {len(images)} rows")
    return images, rows_of


class HarmlessUnpickler(pickle.Unpickler):
    """Builds plain containers and stand-ins for arrays, and nothing else.

    NumPy's own unpickling trusts the types, sizes and even addresses in a pickle. The stand-ins below only record them,
    and `Array.value` is made from the bytes that are present.
    """

    def find_class(self, module: str, name: str) -> Any:
        stand_in = STAND_INS.get((module.replace("._core.", ".core."), name))
        if stand_in is None:
            named = one_line(f"{module}.{name}")
            raise pickle.UnpicklingError(f"it names {named}; only arrays and plain containers are allowed")
        return stand_in


class Type:
    """Stands for numpy.dtype."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class Array:
    """Stands for numpy.ndarray."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, raw = state
        self.value = _from_bytes(raw, kind).reshape(shape, order="F" if by_columns else "C")


def _frombuffer(raw: Any, kind: Type, shape: Any, order: Any) -> Array:
    array = Array()
    array.value = _from_bytes(raw, kind).reshape(shape, order=order)
    return array


def _from_bytes(raw: Any, kind: Type) -> np.ndarray:
    """The array [n] of raw bytes, which Python 2 wrote as text."""
    content = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("its arrays are not of numbers")
    if kind.code not in DTYPES or kind.order not in ("|", "<", ">", "="):
        raise pickle.UnpicklingError(f"its numbers have type {kind.code!r}; allowed: {', '.join(DTYPES)}")
    return np.frombuffer(content, np.dtype(kind.code).newbyteorder("<" if kind.order == "|" else kind.order))


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stands for _codecs.encode, with which protocols 0 to 2 store bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


def _as_array(stored: Any) -> np.ndarray:
    """An array, or a list of arrays or numbers."""
    if isinstance(stored, Array):
        return stored.value
    items = list(stored)
    if not all(isinstance(item, (Array, int)) for item in items):  # nested lists could fill the memory
        raise pickle.UnpicklingError("its lists are not of arrays or whole numbers")
    values = [item.value if isinstance(item, Array) else item for item in items]
    if sum(value.nbytes for value in values if isinstance(value, np.ndarray)) > LARGEST:
        raise pickle.UnpicklingError(f"its arrays have more than {LARGEST} bytes")
    return np.asarray(values)


STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Type,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(),
    ("numpy.core.multiarray", "scalar"): lambda kind, raw: int(_from_bytes(raw, kind)[0]),
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
}


_TRAIN = """
n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006
n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172
n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037
n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472
n04243546 n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742
n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613
"""
_VAL = """
n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780
n03584254 n03770439 n03773504 n03980874 n09256479
"""
_TEST = """
n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925
n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480
"""

RAVI: dict[Split, tuple[str, ...]] = {
    "train": tuple(_TRAIN.split()),
    "val": tuple(_VAL.split()),
    "test": tuple(_TEST.split()),
}
