"""Unpickle arrays and plain containers, without executing anything that a pickle names.

A pickle may name any function to be called; the reader allows only those that make NumPy arrays and plain containers,
and raises at the first other name.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np

from metarun.errors import one_line

LARGEST = 1 << 34  # bytes; the largest pickle of miniImageNet has 8e8
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "b1")


def unpickle(content: bytes) -> Any:
    """The stored value; `Array` stands for arrays. Byte strings of Python 2 become text."""
    return HarmlessUnpickler(io.BytesIO(content), encoding="latin1").load()


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


def as_array(stored: Any) -> np.ndarray:
    """An array, its stand-in, or a list of stand-ins or numbers."""
    if isinstance(stored, (Array, np.ndarray)):
        return stored if isinstance(stored, np.ndarray) else stored.value
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
