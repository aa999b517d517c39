"""Downloads: the addresses of a file are tried in turn, interrupted ones are resumed, and its checksum is verified.

A file is written as NAME.part and renamed once its checksum is right. Existing files are never changed or deleted,
except for .part files. A download below metarun's cache folder has a record .NAME.checksum: `metarun cache` may remove
it.
"""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from metarun.data.files import file_checksum
from metarun.errors import UserError, require
from metarun.storage import atomic
from metarun.storage.locks import try_lock
from metarun.storage.progress import print_notice, track_bytes
from metarun.storage.run_folder import cache_folder

TIMEOUT = 30  # seconds without an answer or a byte
BLOCK = 1 << 16
RESUMES = 5  # of one address, after interruptions
CHECKSUM = re.compile("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}")
EXPECTED = "must be a list of {file: NAME, checksum: sha256:DIGITS, urls: [ADDRESS, ...]}"
BROKEN = (OSError, HTTPException, ValueError)


class Download(NamedTuple):
    file: str
    checksum: str  # sha256:... or md5:...
    urls: tuple[str, ...]


def parse_downloads(urls: Any) -> tuple[Download, ...]:
    """Check the setting `urls`, a list of {file, checksum, urls}. Raise `SettingError` at the first mistake."""
    require(isinstance(urls, (list, tuple)), "urls", urls, EXPECTED)
    downloads = []
    for entry in urls:
        known = isinstance(entry, Mapping) and set(entry) == {"file", "checksum", "urls"}
        require(known and isinstance(entry["urls"], (list, tuple)), "urls", entry, EXPECTED)
        name, checksum, addresses = str(entry["file"] or ""), str(entry["checksum"]).lower(), entry["urls"]
        require(Path(name).name == name not in ("", ".."), "urls", name, "file must be a plain file name")
        require(bool(CHECKSUM.fullmatch(checksum)), "urls", checksum, "checksum must be sha256:DIGITS or md5:DIGITS")
        web = all(isinstance(a, str) and a.lower().startswith(("https://", "http://")) for a in addresses)
        require(web, "urls", addresses, "every address must begin with https:// or http://")
        downloads.append(Download(name, checksum, tuple(addresses)))
    return tuple(downloads)


def fetch(downloads: Sequence[Download], folder: Path) -> None:
    """Download missing files into the folder. Raise `UserError` with the failure of each address if none works."""
    for download in downloads:
        target = folder / download.file
        if target.exists():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(target.with_name(target.name + ".part")) as part:
                if not target.exists():  # another run may have downloaded it meanwhile
                    _download(download, target, part)
            if target.is_relative_to(cache_folder()):
                atomic.replace(target.with_name(f".{target.name}.checksum"), download.checksum.encode())
        except OSError as error:
            raise UserError(f"data.root={folder}: {download.file} cannot be stored there ({error})") from error


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[Path]:
    """Wait until no other process writes this part. An empty one is removed."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # it is reported where the part is written
            file = stack.enter_context(FileIO(part, "a"))
            if try_lock(file) is False:
                print_notice(f"waiting for another process, which downloads {part.stem}")
                try_lock(file, wait=True)
        try:
            yield part
        finally:
            if part.is_file() and not _size(part):
                part.unlink()


def _download(download: Download, target: Path, part: Path) -> None:
    reasons = []
    for url in download.urls:
        resumed = _size(part) > 0
        reason = _try_address(url, download, part)
        if reason and resumed and not part.exists():  # the part may have been the beginning of another file
            reason = _try_address(url, download, part)
        if reason is None:
            part.replace(target)
            return
        reasons.append(f"{url} {reason}")
        print_notice(f"downloading {download.file}: {reasons[-1]}")
    raise UserError(f"{download.file} cannot be downloaded: " + ("; ".join(reasons) or "data.urls has no address"))


def _try_address(url: str, download: Download, part: Path) -> str | None:
    """Complete the part from this address, or return why that failed. A part with a wrong checksum is deleted.

    An interrupted download is resumed as long as bytes arrive.
    """
    for attempt in range(RESUMES + 1):
        before = _size(part)
        try:
            _append(url, part)
            break
        except BROKEN as error:
            if attempt == RESUMES or _size(part) <= before:
                return f"failed ({' '.join(str(error).split()) or type(error).__name__})"
    kind, _, digits = download.checksum.partition(":")
    if file_checksum(part, kind) == digits:
        return None
    part.unlink()
    return f"sent another file: its {kind} checksum is wrong"


def _append(url: str, part: Path) -> None:
    """Request the missing bytes and append them."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # range not satisfiable: nothing is missing
            return
        raise
    with response:
        start = start if response.status == 206 else 0
        length = int(response.headers.get("Content-Length") or 0)
        with (
            open(part, "ab" if start else "wb", buffering=0) as file,
            track_bytes(part.stem, start, start + length) as advance,
        ):
            while block := response.read1(BLOCK):  # not read(): a broken connection would lose its bytes
                _store(file, block)
                advance(len(block))
        if length and _size(part) < start + length:
            raise HTTPException(f"broke off after {_size(part)} of {start + length} bytes")


def _store(file: FileIO, block: bytes) -> None:
    """Write all of the block. Raise `UserError` if the disk fails, which is no reason to try another address."""
    rest = memoryview(block)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise UserError(f"{file.name}: cannot be written ({error.strerror})") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
