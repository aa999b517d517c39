"""miniImageNet's pickles as Python 2 and 3 wrote them; and pickles that would do something, which are not obeyed."""

from __future__ import annotations

import builtins
import collections
import faulthandler
import io
import multiprocessing
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers.image_files import attempt, in_memory, refusal

from metarun.data.array_files import read_arrays

NAME = "mini-imagenet-cache-{}.pkl"
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
CLASSES = {
    "train": {"n03": [3, 4], "n01": [0, 5]},
    "val": {"n02": [2]},
    "test": {"n04": [1, 0]},
}
ENTRIES = [
    *[("n01", "train/00000000", "train"), ("n01", "train/00000005", "train"), ("n02", "val/00000002", "val")],
    *[("n03", "train/00000003", "train"), ("n03", "train/00000004", "train")],
    *[("n04", "test/00000000", "test"), ("n04", "test/00000001", "test")],
]

Dump = Callable[[Any], bytes]


def stored(split: str) -> dict[str, Any]:
    return {"image_data": IMAGES + len(split), "class_dict": CLASSES[split]}


def three(dump: Dump = pickle.dumps, folder: str = "") -> dict[str, bytes]:
    return {folder + NAME.format(split): dump(stored(split)) for split in CLASSES}


def assert_read(contents: dict[str, bytes], change: Callable[[Any], Any] = lambda value: value) -> None:
    """The layout, and rows of the right pickle in the order asked for."""
    found = read_arrays(in_memory(contents))
    assert found is not None
    layout, read = found
    assert layout.name == "pickles"
    assert [tuple(entry[:3]) for entry in layout.entries] == ENTRIES
    wanted = layout.entries[::-1]
    for entry, image in zip(wanted, read(wanted), strict=True):
        split, row = entry.name.split("/")
        np.testing.assert_array_equal(image, change(stored(split))["image_data"][int(row)])


def with_train(content: bytes) -> Callable[[], object]:
    return lambda: read_arrays(in_memory({**three(), NAME.format("train"): content}))


def spoiled(**changes: Any) -> bytes:
    """The training pickle with other values; None leaves one out."""
    return pickle.dumps({k: v for k, v in (stored("train") | changes).items() if v is not None})


class Python2(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes text and bytes as Python 2 did: both are its `str`. NumPy's module had its old name."""

    dispatch: ClassVar[Any] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_str2(self, value: str | bytes) -> None:
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        if self.proto == 0:  # type: ignore[attr-defined]
            self.write(b"S" + repr(raw)[1:].encode() + b"\n")  # type: ignore[attr-defined]
        elif len(raw) < 256:
            self.write(b"U" + bytes([len(raw)]) + raw)  # type: ignore[attr-defined]
        else:
            self.write(b"T" + struct.pack("<i", len(raw)) + raw)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[str] = dispatch[bytes] = save_str2

    @classmethod
    def dump_as(cls, protocol: int) -> Dump:
        def dumps(value: Any) -> bytes:
            buffer = io.BytesIO()
            cls(buffer, protocol).dump(value)
            return buffer.getvalue().replace(b"numpy._core", b"numpy.core")

        return dumps


# Pickles as they are


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_python_3_is_read(protocol: int) -> None:
    assert_read(three(lambda value: pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", range(3))
def test_pickles_of_python_2_are_read(protocol: int) -> None:
    """As the published ones are: names and pixels are byte strings."""
    contents = three(Python2.dump_as(protocol))
    assert b"numpy.core.multiarray" in contents[NAME.format("train")]
    assert_read(contents)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_arrays_of_numpy_before_and_since_2_are_read(core: bytes) -> None:
    def dump(value: Any) -> bytes:
        found = pickle.dumps(value, 2)
        return found.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core)

    assert_read(three(dump))


@pytest.mark.parametrize(
    "other",
    [
        lambda value: value | {"class_dict": {k: np.array(v) for k, v in value["class_dict"].items()}},
        lambda value: value | {"class_dict": {k: [np.int64(i) for i in v] for k, v in value["class_dict"].items()}},
        lambda value: value | {"class_dict": {k: tuple(v) for k, v in value["class_dict"].items()}},
        lambda value: value | {"class_dict": {k.encode(): v for k, v in value["class_dict"].items()}},
        lambda value: value | {"class_dict": collections.OrderedDict(value["class_dict"])},
        lambda value: collections.OrderedDict(value),
        lambda value: value | {"image_data": np.asfortranarray(value["image_data"])},
        lambda value: value | {"image_data": value["image_data"][:, ::-1]},
    ],
    ids=["arrays", "scalars", "tuples", "bytes", "ordered", "all ordered", "Fortran", "not contiguous"],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_rows_and_containers_of_other_kinds_are_read(other: Callable[[Any], Any], protocol: int) -> None:
    assert_read(three(lambda value: pickle.dumps(other(value), protocol)), other)


def test_they_are_found_below_other_folders() -> None:
    assert_read(three(folder="data/mini/"))


@pytest.mark.parametrize("missing", CLASSES)
def test_two_pickles_are_two_splits(missing: str) -> None:
    found = read_arrays(in_memory({name: c for name, c in three().items() if missing not in name}))
    assert found is not None
    assert {entry.split for entry in found[0].entries} == {*CLASSES} - {missing}


# Pickles that are wrong

WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "EOFError"),
    "text": (b"<html>Sign in to the network</html>\n\n", "is not a readable pickle of images"),
    "cut short": (pickle.dumps(stored("train"))[:-40], "is not a readable pickle of images"),
    "a list": (pickle.dumps([1, 2]), "is not a readable pickle of images"),
    "no images": (spoiled(image_data=None), "image_data"),
    "no classes": (spoiled(class_dict=None), "class_dict"),
    "a list of classes": (spoiled(class_dict=[0, 1]), "is not a readable pickle of images"),
    "floats": (spoiled(image_data=IMAGES / 255), "image_data is float64 [6, 4, 4, 3], not uint8 [n, H, W, 3]"),
    "signed": (spoiled(image_data=IMAGES.astype(np.int8)), "image_data is int8 [6, 4, 4, 3]"),
    "objects": (spoiled(image_data=IMAGES.astype(object)), "mini-imagenet-cache-train.pkl: "),
    "images of any size": (
        spoiled(image_data=np.array([IMAGES[0], None], dtype=object)),
        "mini-imagenet-cache-train.pkl: ",
    ),
    "one image": (spoiled(image_data=IMAGES[0]), "image_data is uint8 [4, 4, 3], not uint8 [n, H, W, 3]"),
    "channels first": (spoiled(image_data=IMAGES.transpose(0, 3, 1, 2)), "image_data is uint8 [6, 3, 4, 4]"),
    "four channels": (spoiled(image_data=np.zeros((6, 4, 4, 4), np.uint8)), "image_data is uint8 [6, 4, 4, 4]"),
    "a row beyond": (spoiled(class_dict={"n01": [0, 6]}), "class_dict names row 6, but image_data has 6 rows"),
    "a row below": (spoiled(class_dict={"n01": [-1, 1]}), "class_dict names row -1, but image_data has 6 rows"),
    "rows of text": (spoiled(class_dict={"n01": ["one"]}), "mini-imagenet-cache-train.pkl: "),
    "rows between": (spoiled(class_dict={"n01": [0.5]}), "mini-imagenet-cache-train.pkl: "),
    "one row": (spoiled(class_dict={"n01": 3}), "mini-imagenet-cache-train.pkl: "),
    "one row, as an array": (spoiled(class_dict={"n01": np.array(3)}), "mini-imagenet-cache-train.pkl: "),
    "a table of rows": (spoiled(class_dict={"n01": np.array([[0, 1]])}), "mini-imagenet-cache-train.pkl: "),
    "a row twice": (spoiled(class_dict={"n01": [0, 1], "n03": [1]}), "train/00000001 is listed 2 times"),
    "a class in two": (spoiled(class_dict={"n01": [0], "n04": [1]}), "class n04 is in both train and test"),
    "a codec": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-7\x86R.", "codec utf-7"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_pickle_that_cannot_be_meant_is_refused_in_one_line(wrong: str) -> None:
    content, expected = WRONG[wrong]
    message = refusal(with_train(content))
    assert expected in message
    if "twice" not in wrong and "in two" not in wrong:
        assert message.startswith("/data/mini-imagenet-cache-train.pkl: ")


def in_a_child(check: Callable[..., None], *arguments: Any) -> None:
    """So that a crash is a failure of one test."""

    def quietly() -> None:
        faulthandler.disable()
        check(*arguments)

    child = multiprocessing.get_context("fork").Process(target=quietly)
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0


def refuse_or_read(whole: bytes) -> None:
    for place in range(len(whole)):
        for value in (whole[place] ^ 1, 0x80):
            attempt(with_train(whole[:place] + bytes([value]) + whole[place + 1 :]))


def test_a_pickle_that_was_damaged_anywhere_is_refused_or_read() -> None:
    """Nothing else than one line, whatever byte is another one."""
    for protocol in (2, 4):
        in_a_child(refuse_or_read, pickle.dumps(stored("train") | {"image_data": IMAGES[:, :1, :1]}, protocol))


# Pickles that would do something


class Evil:
    """Asks for a call when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value.encode())]) + value.encode()


def harmful(path: Path) -> dict[str, bytes]:
    """Each would make a file at the path."""
    touch, write = f"touch {path}".encode(), f"open({str(path)!r}, 'w')"
    evil = Evil(os.system, touch.decode())
    array = np.array([evil], dtype=object)
    nested: list[Any] = [
        *[{"image_data": evil}, collections.OrderedDict(a=[(evil,)]), stored("train") | {"class_dict": {"n01": evil}}],
        *[stored("train") | {"more": evil}, stored("train") | {"image_data": array}],
    ]
    return {
        **{f"os.system, protocol {p}": pickle.dumps(evil, p) for p in range(6)},
        **{f"eval, protocol {p}": pickle.dumps(Evil(builtins.eval, write), p) for p in range(6)},
        **{f"nested {i}, protocol {p}": pickle.dumps(value, p) for i, value in enumerate(nested) for p in (0, 2, 5)},
        "GLOBAL": b"cposix\nsystem\n(S'" + touch + b"'\ntR.",
        "STACK_GLOBAL": b"\x80\x04" + text("posix") + text("system") + b"\x93" + text(touch.decode()) + b"\x85R.",
        "STACK_GLOBAL, dotted": b"\x80\x04" + text("numpy") + text("ndarray.tofile") + b"\x93.",
        "INST": b"(S'" + touch + b"'\niposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\nS'" + touch + b"'\no.",
        "NEWOBJ": b"\x80\x04cnumpy\nmemmap\n(" + text(str(path)) + text("uint8") + text("w+") + b"K\x00K\x08\x85t\x81.",
        "Python 2": b"c__builtin__\neval\n(S" + repr(write).encode() + b"\ntR.",
        "first good": pickle.dumps(stored("train"))[:-1] + b"0cposix\nsystem\n(S'" + touch + b"'\ntR.",
        "numpy.fromfile": pickle.dumps(Evil(np.fromfile, str(path))),
        "numpy.load": pickle.dumps(Evil(np.load, str(path))),
        "numpy.memmap": pickle.dumps(Evil(np.memmap, str(path), "uint8", "w+", 0, (8,))),
        "getattr": pickle.dumps(Evil(getattr, np.ndarray, "tofile")),
        "a class of its own": pickle.dumps(Path(path)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", harmful(Path("x")))
def test_a_pickle_that_would_do_something_is_refused_and_not_obeyed(tmp_path: Path, kind: str) -> None:
    made = tmp_path / "made"
    message = refusal(with_train(harmful(made)[kind]))
    assert message.startswith("/data/mini-imagenet-cache-train.pkl: is not a readable pickle of images (")
    assert "(UnpicklingError: it " in message
    assert not made.exists()


def test_the_harmful_pickles_do_harm_where_they_are_obeyed(tmp_path: Path) -> None:
    """Or else the test above would prove nothing."""
    kinds = (
        "os.system, protocol 2",
        "eval, protocol 0",
        "nested 4, protocol 5",
        "GLOBAL",
        "STACK_GLOBAL",
        "INST",
        "OBJ",
    )
    for i, kind in enumerate((*kinds, "NEWOBJ", "first good", "Python 2", "numpy.memmap")):
        made = tmp_path / f"made{i}"
        pickle.loads(harmful(made)[kind])
        assert made.exists(), kind


def test_what_a_pickle_names_cannot_forge_lines() -> None:
    content = b"\x80\x04" + text("os\nmetarun: all is well") + text("system\n\x1b[2J") + b"\x93."
    assert "\x1b" not in refusal(with_train(content))


def test_extensions_and_persistent_ids_are_refused() -> None:
    for content in (b"\x80\x02\x82\x01.", b"Pabc\n.", b"\x80\x02K\x01Q."):
        assert "is not a readable pickle of images" in refusal(with_train(content))


# Memory that is not an array's


def forged(dtype: bytes) -> bytes:
    """Eight bytes that an array of the forged type takes for the address of an object."""
    array = (
        text("numpy._core.numeric")
        + text("_frombuffer")
        + b"\x93(C\x08AAAAAAAA"
        + dtype
        + b"K\x01\x85"
        + text("C")
        + b"tR"
    )
    images = pickle.dumps(IMAGES, 4)[11:-1]  # without header and end
    return b"\x80\x04}(" + text("image_data") + images + text("class_dict") + b"}" + text("n01") + array + b"su."


def forged_type() -> bytes:
    """A structure of eight bytes, with flags that say it has no objects, and a field that is one."""
    plain, objects = (text("numpy") + text("dtype") + b"\x93" + text(t) + b"\x89\x88\x87R" for t in ("V8", "O8"))
    field = b"}" + text("f0") + objects + b"K\x00\x86s"
    return plain + b"(K\x03" + text("|") + b"N" + text("f0") + b"\x85" + field + b"K\x08K\x01K\x00tb"


def refuse(content: bytes) -> None:
    assert "is not a readable pickle of images" in refusal(with_train(content))


def test_a_forged_type_of_array_does_not_reach_into_memory() -> None:
    """NumPy believes a pickled dtype what it says of itself; whoever can choose an address can run anything."""
    in_a_child(refuse, forged(forged_type()))
