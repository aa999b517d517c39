"""Downloads from a local server that serves well, badly or not at all."""

from __future__ import annotations

import hashlib
import io
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from helpers.download_site import CONTENT, OTHER, PAGE, Site, Source

from metarun.data.fetch import Download, fetch, parse_downloads
from metarun.errors import SettingError, UserError
from metarun.storage.cache_entries import list_entries
from metarun.storage.locks import try_lock


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    site = Site(monkeypatch)
    yield site
    site.close()


def checksum(content: bytes, kind: str = "sha256") -> str:
    return f"{kind}:{hashlib.new(kind, content).hexdigest()}"


def get(folder: Path, *urls: str, name: str = "a.zip", like: str = checksum(CONTENT)) -> None:
    fetch([Download(name, like, urls)], folder)


def refusal(action: Callable[[], object]) -> str:
    """The one line that the user is told."""
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What works


@pytest.mark.parametrize("kind", ["sha256", "md5"])
@pytest.mark.parametrize("behaviour", [{}, {"ranges": False}, {"length": False}], ids=str)
def test_a_file_is_stored_once_its_sum_is_right(
    tmp_path: Path, site: Site, behaviour: dict[str, Any], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below folders that are made for it; said in one line, with its size where that is known."""
    url, source = site.add(**behaviour)
    get(tmp_path / "x/y", url, like=checksum(CONTENT, kind))
    assert files(tmp_path) == {"x/y/a.zip": CONTENT}
    assert source.asked == [None]
    said = "downloading a.zip" + (": 300000 bytes" if source.length else "")
    assert capsys.readouterr() == ("", said + "\n")


def test_what_is_downloaded_into_the_cache_is_recorded_and_a_copy_put_there_is_not(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the record `metarun cache` knows what it may remove. Other folders get nothing but the file."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    url, _ = site.add()
    get(tmp_path / "cache/data/x", url)
    (tmp_path / "cache/data/x/b.zip").write_bytes(CONTENT)
    get(tmp_path / "cache/data/x", url, name="b.zip")
    get(tmp_path / "other", url)
    assert files(tmp_path / "other") == {"a.zip": CONTENT}
    (entry,), others = list_entries(tmp_path / "cache")
    assert (entry.name, entry.checksum) == ("data/x/a.zip", checksum(CONTENT))
    assert others == ["data/x/b.zip"]


def test_an_empty_file_can_be_downloaded(tmp_path: Path, site: Site) -> None:
    (tmp_path / "empty").write_bytes(b"")
    get(tmp_path, (tmp_path / "empty").as_uri(), like=checksum(b""))
    assert files(tmp_path)["a.zip"] == b""


@pytest.mark.parametrize("length", [True, False])
def test_on_a_terminal_a_bar_is_shown(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, length: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    url, _ = site.add(length=length)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Terminal())
        get(tmp_path, url)
        shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "downloading a.zip" in shown
    assert files(tmp_path) == {"a.zip": CONTENT}


# Resuming


def test_what_breaks_off_is_resumed_where_it_did(tmp_path: Path, site: Site) -> None:
    """Each byte is sent once."""
    url, source = site.add(most=120_000)
    get(tmp_path, url)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.asked == [None, "bytes=120000-", "bytes=240000-"]
    assert source.sent == len(CONTENT)


@pytest.mark.parametrize("most", [1000, 100_000])
def test_what_came_before_a_line_went_dead_is_kept(tmp_path: Path, site: Site, most: int) -> None:
    """Little of it or much: what waits in a buffer when the time is up came as well."""
    url, source = site.add(most=most, breaks="hang", later=Source())
    get(tmp_path, url)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.asked == [None, f"bytes={most}-"]


def test_a_reset_connection_is_resumed(tmp_path: Path, site: Site) -> None:
    """What was on its way when the line broke may be lost, and then comes again."""
    url, source = site.add(most=120_000, breaks="reset")
    get(tmp_path, url)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.asked[0] is None
    assert all(source.asked[1:])
    assert source.sent < 2 * len(CONTENT)


def test_redirections_are_followed_when_resuming_too(tmp_path: Path, site: Site) -> None:
    """As GitHub's addresses do."""
    end, source = site.add(most=120_000)
    url, _ = site.add(moved=end)
    get(tmp_path, url)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.asked == [None, "bytes=120000-", "bytes=240000-"]


def test_a_server_that_cannot_resume_is_asked_for_the_whole_again(tmp_path: Path, site: Site) -> None:
    url, source = site.add(ranges=False, most=120_000, later=Source(ranges=False))
    get(tmp_path, url)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.asked == [None, "bytes=120000-"]


def test_a_line_that_always_breaks_gets_there_in_a_few_runs(tmp_path: Path, site: Site) -> None:
    """A run gives up after six answers, and the next must go on from there: 15 answers are needed."""
    url, source = site.add(most=20_000)
    held = []
    for _ in range(2):
        assert "broke off" in refusal(lambda: get(tmp_path, url))
        held.append(len(files(tmp_path).get("a.zip.part", b"")))
    assert held == [120_000, 240_000]
    get(tmp_path, url)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.sent == len(CONTENT)


def test_an_address_goes_on_where_another_broke_off(tmp_path: Path, site: Site) -> None:
    first, one = site.add(most=100_000, later=Source(status=503))
    second, other = site.add()
    get(tmp_path, first, second)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert other.asked == ["bytes=100000-"]
    assert one.sent + other.sent == len(CONTENT)


@pytest.mark.parametrize("status", [404, 500])
def test_an_address_without_the_file_costs_nothing_that_came_before(tmp_path: Path, site: Site, status: int) -> None:
    first, one = site.add(most=100_000, later=Source(status=503))
    dead, asked_once = site.add(status=status)
    last, other = site.add()
    get(tmp_path, first, dead, last)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert one.sent + other.sent == len(CONTENT)
    assert len(asked_once.asked) == 1


def test_what_came_in_an_earlier_run_is_kept_while_no_address_answers(tmp_path: Path, site: Site) -> None:
    """Hours of downloading must not be lost to a minute without a network."""
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:200_000])
    dead, source = site.add(status=503)
    refusal(lambda: get(tmp_path, dead, closed_port()))
    assert files(tmp_path) == {"a.zip.part": CONTENT[:200_000]}
    assert len(source.asked) == 1
    good, source = site.add()
    get(tmp_path, good)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.asked == ["bytes=200000-"]


def test_a_second_process_waits_for_the_first_and_takes_its_file(
    tmp_path: Path, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    url, source = site.add()
    part, waited = tmp_path / "a.zip.part", threading.Event()
    with FileIO(part, "a") as first:
        assert try_lock(first)
        second = threading.Thread(target=get, args=(tmp_path, url))
        second.start()
        assert not waited.wait(0.5)
        assert second.is_alive()
        first.write(CONTENT)
        part.rename(tmp_path / "a.zip")
    second.join(20)
    assert not second.is_alive()
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert "waiting for another process, which downloads a.zip" in capsys.readouterr().err
    assert source.asked == []


def test_a_part_that_is_complete_is_only_summed(tmp_path: Path, site: Site) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    url, source = site.add()
    get(tmp_path, url)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.sent == 0


@pytest.mark.parametrize("length", [0, 1, 150_000, 300_000, 300_001])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_of_something_else_is_discarded(tmp_path: Path, site: Site, length: int, ranges: bool) -> None:
    """Shorter, as long, and longer than the file, where the server answers 416."""
    (tmp_path / "a.zip.part").write_bytes((OTHER + OTHER)[:length])
    url, source = site.add(ranges=ranges)
    get(tmp_path, url)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.sent <= 2 * len(CONTENT)


def test_a_server_that_refuses_every_range_is_asked_for_the_whole(tmp_path: Path, site: Site) -> None:
    """416 may mean that nothing is missing; here it does not."""
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:100_000])
    url, source = site.add(status=416, later=Source())
    get(tmp_path, url)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert source.asked == ["bytes=100000-", None]


# What does not work


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/a.zip"


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "not there": ({"status": 404}, "failed (HTTP Error 404: Not Found)"),
    "broken": ({"status": 500}, "failed (HTTP Error 500: Internal Server Error)"),
    "no such range": ({"status": 416}, "failed (HTTP Error 416: "),
    "cut": ({"most": 1000, "ranges": False}, "failed (broke off after 1000 of 300000 bytes)"),
    "cut, of unknown length": ({"most": 1000, "length": False}, "sent another file: its sha256 checksum is wrong"),
    "reset": ({"most": 0, "breaks": "reset"}, "failed ("),
    "hangs": ({"most": 0, "breaks": "hang"}, "failed (timed out)"),
    "another file": ({"content": OTHER}, "sent another file: its sha256 checksum is wrong"),
    "a byte changed": ({"content": CONTENT[:-1] + b"x"}, "sent another file: its sha256 checksum is wrong"),
    "a page": ({"content": PAGE}, "sent another file: its sha256 checksum is wrong"),
    "a page of unknown length": ({"content": PAGE, "length": False}, "sent another file: its sha256 checksum is wrong"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_failure_is_told_and_the_next_address_is_tried(
    tmp_path: Path, site: Site, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour, reason = FAULTS[fault]
    bad, _ = site.add(**behaviour)
    good, _ = site.add()
    never, unasked = site.add()
    get(tmp_path, bad, good, never)
    assert files(tmp_path) == {"a.zip": CONTENT}
    assert unasked.asked == []
    told = [line for line in capsys.readouterr().err.splitlines() if bad in line]
    assert len(told) == 1
    assert told[0].startswith(f"downloading a.zip: {bad} {reason}")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_has_another_sum_never_becomes_the_file(tmp_path: Path, site: Site, fault: str) -> None:
    behaviour, reason = FAULTS[fault]
    url, source = site.add(**behaviour)
    message = refusal(lambda: get(tmp_path, url))
    assert message.startswith(f"a.zip cannot be downloaded: {url} {reason}")
    assert set(files(tmp_path)) <= {"a.zip.part"}
    assert CONTENT.startswith(files(tmp_path).get("a.zip.part", b""))  # what is kept can be gone on with
    assert len(source.asked) <= 2


def test_when_everything_fails_one_line_has_every_address_and_its_reason(tmp_path: Path, site: Site) -> None:
    urls = [site.add(**behaviour)[0] for behaviour, _ in FAULTS.values()]
    odd = [closed_port(), "gopher://127.0.0.1/a.zip", "no address", "http://127.0.0.1:port/", "http://[/"]
    message = refusal(lambda: get(tmp_path, *urls, *odd))
    for url in (*urls, *odd):
        assert message.count(f"{url} ") == 1
    assert message.count("; ") == len(urls) + len(odd) - 1
    assert "refused" in message
    assert set(files(tmp_path)) <= {"a.zip.part"}


def test_without_addresses_one_line_says_so(tmp_path: Path) -> None:
    assert refusal(lambda: get(tmp_path)) == "a.zip cannot be downloaded: data.urls has no address"


# What is there already


def strangers(folder: Path) -> dict[str, bytes]:
    """Files that are no business of a download."""
    for name in ("b.zip", "b.zip.part", "a.zip.bak", "a.zip.part.old", "notes.txt", "below/a.zip", "below/a.zip.part"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return files(folder)


@pytest.mark.parametrize(
    "behaviour", [{}, {"status": 404}, {"content": PAGE}, {"most": 1000, "ranges": False}], ids=str
)
def test_strangers_files_are_left_alone(tmp_path: Path, site: Site, behaviour: dict[str, Any]) -> None:
    before = strangers(tmp_path)
    url, _ = site.add(**behaviour)
    if behaviour:
        refusal(lambda: get(tmp_path, url))
    else:
        get(tmp_path, url)
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"a.zip", "a.zip.part"}


def test_a_file_that_is_there_is_neither_asked_for_nor_changed(tmp_path: Path, site: Site) -> None:
    """Whatever it holds: it may be the user's own."""
    (tmp_path / "a.zip").write_bytes(OTHER)
    (tmp_path / "a.zip.part").write_bytes(OTHER)
    before = [(p, p.stat().st_mtime_ns) for p in sorted(tmp_path.iterdir())]
    url, source = site.add()
    get(tmp_path, url)
    assert [(p, p.stat().st_mtime_ns) for p in sorted(tmp_path.iterdir())] == before
    assert source.asked == []


def test_of_several_files_only_what_is_missing_is_fetched(tmp_path: Path, site: Site) -> None:
    (tmp_path / "a.zip").write_bytes(b"mine")
    (good, one), (bad, _), (never, last) = site.add(), site.add(status=404), site.add()
    names = {"a.zip": never, "b.zip": good, "c.zip": bad, "d.zip": never}
    downloads = [Download(name, checksum(CONTENT), (url,)) for name, url in names.items()]
    assert "c.zip cannot be downloaded" in refusal(lambda: fetch(downloads, tmp_path))
    assert files(tmp_path) == {"a.zip": b"mine", "b.zip": CONTENT}
    assert (len(one.asked), last.asked) == (1, [])


# Where nothing can be stored


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path, site: Site) -> None:
    (tmp_path / "file").write_text("in the way")
    url, source = site.add()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        message = refusal(lambda folder=folder: get(folder, url))  # type: ignore[misc]
        assert str(folder) in message
        assert "cannot be" in message
    assert source.asked == []
    assert files(tmp_path) == {"file": b"in the way"}


def test_a_folder_in_the_place_of_the_part_is_one_line(tmp_path: Path, site: Site) -> None:
    (tmp_path / "a.zip.part").mkdir()
    (tmp_path / "a.zip.part/kept").write_text("mine")
    url, _ = site.add()
    assert "a.zip" in refusal(lambda: get(tmp_path, url))
    assert files(tmp_path) == {"a.zip.part/kept": b"mine"}


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_folder_that_takes_no_files_is_one_line(site: Site) -> None:
    """/proc/self takes none from root either."""
    url, _ = site.add()
    assert "/proc/self" in refusal(lambda: get(Path("/proc/self"), url))
    assert "/proc/self" in refusal(lambda: get(Path("/proc/self/below"), url))


@pytest.mark.parametrize(("size", "room"), [(300_000, 1000), (300_000, 100_000), (300_000, 299_000), (5000, 1000)])
def test_a_full_disk_is_one_line_and_no_fault_of_the_address(tmp_path: Path, site: Site, size: int, room: int) -> None:
    """Downloading again would not help: one address is asked, once. Imitated by a limit on the size of files."""
    content = CONTENT[:size]
    (url, source), (next_url, unasked) = site.add(content=content), site.add(content=content)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(UserError) as caught:
            get(tmp_path, url, next_url, like=checksum(content))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert "cannot be written (File too large)" in message
    assert (len(source.asked), unasked.asked) == (1, [])
    assert set(files(tmp_path)) <= {"a.zip.part"}
    get(tmp_path, url, like=checksum(content))
    assert files(tmp_path) == {"a.zip": content}


# Settings

GOOD: dict[str, Any] = {"file": "a.zip", "checksum": "md5:" + "0" * 32, "urls": ["http://127.0.0.1/a.zip"]}


def test_the_setting_names_files_with_their_sums_and_addresses(tmp_path: Path, site: Site) -> None:
    """Sums are also written in capitals."""
    url, _ = site.add()
    kind, digits = checksum(CONTENT, "md5").split(":")
    entries = [
        {"file": "a.zip", "checksum": checksum(CONTENT), "urls": [url]},
        {"file": "b", "checksum": f"{kind}:{digits.upper()}", "urls": (url, url + "x")},
    ]
    found = parse_downloads(entries)
    assert found == (
        Download("a.zip", checksum(CONTENT), (url,)),
        Download("b", checksum(CONTENT, "md5"), (url, url + "x")),
    )
    fetch(found, tmp_path)
    assert files(tmp_path) == {"a.zip": CONTENT, "b": CONTENT}
    assert parse_downloads([]) == ()


def assert_refused(entries: Any) -> None:
    with pytest.raises(SettingError) as caught:
        parse_downloads(entries)
    assert caught.value.key == "urls"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        *[{"checksum": c} for c in ("", None, 7, "sha256", "md5:", "a" * 64, "sha1:" + "a" * 40, "md5:" + "a" * 64)],
        *[{"checksum": c} for c in ("sha256:" + "a" * 63, "sha256:" + "g" * 64, "md5:" + " " * 32)],
        *[{"file": name} for name in ("", ".", "..", "../a", "a/b", "/a", "a/", "a/..", "./a", None)],
        *[{"urls": urls} for urls in ("http://127.0.0.1/a.zip", None, 7, [None], {"x": 1})],
    ],
    ids=str,
)
def test_an_entry_that_cannot_work_is_refused_by_the_key(change: dict[str, Any]) -> None:
    """A sum has hexadecimal digits, a file stays in its folder, and one address is no list of them."""
    assert_refused([GOOD | change])
    assert_refused([GOOD, GOOD | change])


@pytest.mark.parametrize(
    "entries",
    [
        *[[entry] for entry in ("http://127.0.0.1/a.zip", None, 7, [], {}, ["file", "checksum", "urls"])],
        *[[{k: v for k, v in GOOD.items() if k != left_out}] for left_out in GOOD],
        *["http://127.0.0.1/a.zip", {"file": "a.zip"}, None],
    ],
    ids=str,
)
def test_what_is_no_list_of_downloads_is_refused_by_the_key(entries: Any) -> None:
    assert_refused(entries)
