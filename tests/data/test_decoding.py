"""Files decoded in parallel, and written in their order."""

from __future__ import annotations

import gc
import io
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers.pictures import file

from metarun.data.cache import DecodedImages
from metarun.data.decoding import AHEAD, GROUP, Read, UnreadableImage, write_images
from metarun.data.image_list import Entry
from metarun.data.pixels import Pixels
from metarun.errors import UserError

PIXELS = Pixels(8, 1, "nearest")
EACH = 64  # bytes of an image
NO_IMAGE = b"no image"


def picture(number: int) -> np.ndarray:
    """8 x 8 x 1; the first two pixels say which one it is."""
    pixels = np.full((8, 8, 1), 7, dtype=np.uint8)
    pixels[0, :2, 0] = divmod(number, 256)
    return pixels


def numbers(content: bytes) -> list[int]:
    """Which pictures were written."""
    pixels = np.frombuffer(content, np.uint8).reshape(-1, EACH).astype(int)
    assert (pixels[:, 2:] == 7).all()
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


def classes(*sizes: int) -> list[Entry]:
    """class a has sizes[0] files, and so on; files are called by their numbers."""
    labels = [chr(ord("a") + c) for c, size in enumerate(sizes) for _ in range(size)]
    return [Entry(label, f"{label}/{number}.png", None) for number, label in enumerate(labels)]


def reader(*broken: int) -> Read:
    """Gives every file's picture; those of `broken` numbers are no images."""

    def read(entries: Iterable[Entry]) -> Iterator[Any]:
        for entry in entries:
            number = int(entry.name[2:-4])
            yield NO_IMAGE if number in broken else picture(number)

    return read


def write(
    entries: list[Entry], *broken: int, skip: bool = False, pixels: Pixels = PIXELS
) -> tuple[DecodedImages, list[int]]:
    """What was said of the pictures, and which were written."""
    buffer = io.BytesIO()
    decoded = write_images(buffer, entries, reader(*broken), pixels, skip)
    return decoded, numbers(buffer.getvalue())


def refusal(action: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Once an exception is handled, those that it ended have gone."""
    before = set(threading.enumerate())
    yield
    if not set(threading.enumerate()) <= before:
        gc.collect()
    assert set(threading.enumerate()) <= before


# Order


class Uneven(Pixels):
    """Takes its time over the first picture of a group, the longer the earlier the group is."""

    done: list[int] = []  # noqa: RUF012

    def decode(self, content: Any) -> Any:
        number = int(content[0, 0, 0]) * 256 + int(content[0, 1, 0])
        if number % GROUP == 0:
            time.sleep(0.03 * (4 - number // GROUP % 4))
        self.done.append(number)
        return super().decode(content)


def test_pictures_are_written_in_the_order_of_the_entries_whichever_thread_is_first() -> None:
    Uneven.done.clear()
    count = GROUP * 12 + 5
    _, written = write(classes(count), pixels=Uneven(8, 1, "nearest"))
    assert Uneven.done != sorted(Uneven.done)  # threads did overtake each other
    assert sorted(Uneven.done) == written == list(range(count))


@pytest.mark.parametrize("count", [1, GROUP - 1, GROUP, GROUP + 1, GROUP * AHEAD, GROUP * AHEAD + 1])
def test_no_picture_is_lost_where_groups_end(count: int) -> None:
    decoded, written = write(classes(count))
    files = [f"a/{number}.png" for number in range(count)]
    assert written == list(range(count))
    assert decoded == DecodedImages((count, 1, 8, 8), ("a",), [0], [count], {"skipped": [], "flat": []}, files)


def test_counts_and_starts_are_those_of_unequal_classes() -> None:
    sizes = [1, 70, 3, GROUP, 2 * GROUP, 2]
    decoded, written = write(classes(*sizes))
    assert written == list(range(sum(sizes)))
    assert decoded.shape == (sum(sizes), 1, 8, 8)
    assert decoded.names == tuple("abcdef")
    assert decoded.counts == sizes
    assert decoded.starts == [0, 1, 71, 74, 74 + GROUP, 74 + 3 * GROUP]


def test_files_and_arrays_are_decoded_as_pixels_says() -> None:
    """The bytes are those of `decode`, in colour too."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (10, 12, 3), dtype=np.uint8) for _ in range(3)]
    contents = [file(arrays[0], "png"), file(arrays[1], "jpeg"), arrays[2]]
    pixels = Pixels(8, 3, "area", "crop", ink=True)
    buffer = io.BytesIO()
    decoded = write_images(buffer, classes(2, 1), lambda entries: iter(contents), pixels)
    assert decoded.shape == (3, 3, 8, 8)
    assert buffer.getvalue() == b"".join(pixels.decode(content).tobytes() for content in contents)


def test_the_reader_is_given_all_entries_once_and_in_order() -> None:
    asked = []

    def read(entries: Iterable[Entry]) -> Iterator[Any]:
        asked.extend(entries)
        return reader()(asked)

    entries = classes(3, 2)
    write_images(io.BytesIO(), entries, read, PIXELS)
    assert asked == entries


def test_progress_is_one_line_and_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    write(classes(3, 2))
    assert capsys.readouterr() == ("", "decoding images: 5 items\n")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Terminal())
        decoded, written = write(classes(3, 2), 1, skip=True)
        shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "decoding images" in shown
    assert (decoded.counts, written) == ([2, 2], [0, 2, 3, 4])


# What is no image


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param((0,), id="the first"),
        pytest.param((209,), id="the last"),
        pytest.param((4, 5), id="the last of a class and the first of the next"),
        pytest.param((GROUP - 1, GROUP), id="where a group ends"),
        pytest.param((1, 2, 3, 4), id="all of a class but its first"),
        pytest.param(tuple(range(5, 204)), id="groups of nothing else"),
    ],
)
def test_broken_images_are_left_out_and_counted(broken: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Classes of 5, 200 and 5."""
    entries = classes(5, 200, 5)
    decoded, written = write(entries, *broken, skip=True)
    assert written == [n for n in range(210) if n not in broken]
    counts = [sum(entries[n].label == label for n in written) for label in "abc"]
    assert decoded.counts == counts
    assert decoded.starts == [0, counts[0], counts[0] + counts[1]]
    assert decoded.names == ("a", "b", "c")
    assert decoded.shape == (len(written), 1, 8, 8)
    assert decoded.notes["skipped"] == [entries[n].name for n in broken]
    said = capsys.readouterr().err.splitlines()[1:]
    assert len(said) == len(broken)
    for n, line in zip(broken, said, strict=True):
        assert line.startswith(f"skipped: {entries[n].name} is not a readable image (")


@pytest.mark.parametrize(("empty", "broken"), [("a", (0, 1)), ("b", (2,)), ("c", (3, 4, 5)), ("b", (2, 3, 4, 5))])
def test_a_class_without_an_image_is_one_line(empty: str, broken: tuple[int, ...]) -> None:
    """Its first when there are several. Leaving images out is what led here: it must not be proposed again."""
    error = refusal(lambda: write(classes(2, 1, 3), *broken, skip=True))
    assert str(error) == f"class {empty} has no image that can be decoded"
    assert not isinstance(error, UnreadableImage)


@pytest.mark.parametrize("broken", [0, 4, 5, 40, 209])
def test_unless_they_may_be_left_out_the_first_broken_image_is_named(broken: int) -> None:
    entries = classes(5, 200, 5)
    error = refusal(lambda: write(entries, broken, 209))
    assert isinstance(error, UnreadableImage)
    assert str(error).startswith(f"{entries[broken].name} is not a readable image (")


def test_nothing_more_is_read_once_an_image_is_broken() -> None:
    read = []

    def counting(entries: Iterable[Entry]) -> Iterator[Any]:
        for content in reader(3)(entries):
            read.append(content)
            yield content

    refusal(lambda: write_images(io.BytesIO(), classes(3000), counting, PIXELS))
    assert len(read) <= (AHEAD + 1) * GROUP


# Memory


class Counting(io.BytesIO):
    images = 0

    def write(self, content: Any) -> int:
        self.images += 1
        return super().write(content)


@pytest.mark.parametrize("pixels", [PIXELS, Uneven(8, 1, "nearest")], ids=["at once", "slowly"])
def test_the_reader_is_a_few_groups_ahead_of_the_writer(pixels: Pixels) -> None:
    """A data set is larger than the memory; but one group at a time would leave the threads idle."""
    output, ahead = Counting(), []

    def counting(entries: Iterable[Entry]) -> Iterator[Any]:
        for number, content in enumerate(reader()(entries), start=1):
            ahead.append(number - output.images)
            yield content

    count = 20 * GROUP
    write_images(output, classes(count), counting, pixels)
    assert len(ahead) == output.images == count
    assert 2 * GROUP < max(ahead) <= AHEAD * GROUP


# Errors of others


class Boom(Exception):
    """Nothing that metarun raises."""


BOOM = Boom("two\nlines")


@pytest.mark.parametrize("number", [0, 1, GROUP, 100, AHEAD * GROUP, AHEAD * GROUP + 1, 11 * GROUP - 1])
@pytest.mark.parametrize("error", [BOOM, UserError("damaged at a/7.png"), KeyboardInterrupt()], ids=repr)
def test_an_error_of_the_reader_comes_out_unchanged(number: int, error: BaseException) -> None:
    def failing(entries: Iterable[Entry]) -> Iterator[Any]:
        for n, content in enumerate(reader()(entries)):
            if n == number:
                raise error
            yield content

    before = threading.active_count()
    with pytest.raises(type(error)) as caught:
        write_images(io.BytesIO(), classes(11 * GROUP), failing, PIXELS)
    assert caught.value is error
    assert threading.active_count() == before


@pytest.mark.parametrize("number", [0, GROUP - 1, 500])
def test_an_error_of_the_writer_comes_out_unchanged(number: int) -> None:
    """A full disk: whoever gave the file knows what to say."""

    class Full(Counting):
        def write(self, content: Any) -> int:
            if self.images == number:
                raise error
            return super().write(content)

    error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space") as caught:
        write_images(Full(), classes(11 * GROUP), reader(), PIXELS)
    assert caught.value is error


@pytest.mark.parametrize("error", [BOOM, MemoryError("too little")], ids=repr)
def test_an_error_while_decoding_that_is_no_fault_of_the_image_comes_out_unchanged(error: Exception) -> None:
    """Also where broken images are left out."""

    class Failing(Pixels):
        def decode(self, content: Any) -> Any:
            if content[0, 1, 0] == 70:
                raise error
            return super().decode(content)

    before = threading.active_count()
    with pytest.raises(type(error)) as caught:
        write_images(io.BytesIO(), classes(11 * GROUP), reader(), Failing(8, 1, "nearest"), skip=True)
    assert caught.value is error
    assert threading.active_count() == before


@pytest.mark.parametrize("given", [4, 6])
def test_a_reader_that_gives_too_few_or_too_many_never_shifts_the_classes(given: int) -> None:
    with pytest.raises(ValueError, match="argument 2 is"):
        write_images(io.BytesIO(), classes(3, 2), lambda entries: iter([picture(n) for n in range(given)]), PIXELS)


@pytest.mark.parametrize(
    ("largest", "depth"), [(200, 8), (255, 8), (256, 10), (1023, 10), (4000, 12), (16383, 14), (16384, 16), (65535, 16)]
)
def test_files_of_sixteen_bits_are_scaled_by_the_largest_value_of_all(largest: int, depth: int) -> None:
    """Also where the largest is in the last file, and the first is one of 8 bits."""
    arrays = [np.full((8, 8), 7, np.uint8), np.arange(64, dtype=np.uint16).reshape(8, 8)]
    arrays.append(np.linspace(0, largest, 64).astype(np.uint16).reshape(8, 8))
    stored = io.BytesIO()
    entries = [Entry("a", f"{i}.png", None) for i in range(3)]
    pixels = Pixels(8, 1, "nearest", depth=None)
    decoded = write_images(stored, entries, lambda some: (file(arrays[int(e.name[0])], "png") for e in some), pixels)
    found = np.frombuffer(stored.getvalue(), np.uint8).reshape(3, 8, 8)
    np.testing.assert_array_equal(found[0], 7)
    np.testing.assert_array_equal(found[1], arrays[1] >> (depth - 8))
    np.testing.assert_array_equal(found[2], arrays[2] >> (depth - 8))
    assert (decoded.notes["depth"], decoded.notes["largest"]) == (depth, largest)
    assert "0.png" in decoded.notes["flat"]
