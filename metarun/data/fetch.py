"""Downloads: several addresses for a file, tried in turn, resumed where they broke off, checked by their sum.

A file is written as NAME.part and renamed once its sum is right. What is there already is never changed or deleted,
but for the .part files that were made here.
"""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from metarun.errors import UserError, require
from metarun.storage.progress import print_notice, track_bytes

TIMEOUT = 30  # seconds without an answer or a byte
BLOCK = 1 << 16
RESUMES = 5  # times that one address may break off
SUM = re.compile("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}")
EXPECTED = "must be a list of {file: NAME, checksum: sha256:SUM, urls: [ADDRESS, ...]}"
BROKEN = (OSError, HTTPException, ValueError)


class Download(NamedTuple):
    file: str
    checksum: str  # sha256:... or md5:...
    urls: tuple[str, ...]


def as_downloads(urls: Any) -> tuple[Download, ...]:
    """The setting `urls`: a list of {file, checksum, urls}."""
    require(isinstance(urls, (list, tuple)), "urls", urls, EXPECTED)
    return tuple(_as_download(entry) for entry in urls)


def _as_download(entry: Any) -> Download:
    known = isinstance(entry, Mapping) and set(entry) == {"file", "checksum", "urls"}
    require(known and isinstance(entry["urls"], (list, tuple)), "urls", entry, EXPECTED)
    name, checksum, addresses = str(entry["file"] or ""), str(entry["checksum"]).lower(), entry["urls"]
    require(Path(name).name == name not in ("", ".."), "urls", name, "file must be a plain file name")
    require(bool(SUM.fullmatch(checksum)), "urls", checksum, "checksum must be sha256:SUM or md5:SUM")
    of_the_web = all(isinstance(a, str) and a.lower().startswith(("https://", "http://")) for a in addresses)
    require(of_the_web, "urls", addresses, "every address must begin with https:// or http://")
    return Download(name, checksum, tuple(addresses))


def fetch(downloads: Sequence[Download], folder: Path) -> None:
    """Get what is missing into the folder; `UserError` with the reason of every address when none works."""
    for download in downloads:
        target = folder / download.file
        if target.exists():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _fetch_one(download, target)
        except OSError as error:
            raise UserError(f"data.root={folder}: {download.file} cannot be stored there ({error})") from error


def _fetch_one(download: Download, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    reasons = []
    for url in download.urls:
        resumed = part.exists()
        reason = _try(url, download, part)
        if reason and resumed and not part.exists():  # what was there may have been the beginning of something else
            reason = _try(url, download, part)
        if reason is None:
            part.replace(target)
            return
        reasons.append(f"{url} {reason}")
        print_notice(f"downloading {download.file}: {reasons[-1]}")
    raise UserError(f"{download.file} cannot be downloaded: " + ("; ".join(reasons) or "data.urls has no address"))


def _try(url: str, download: Download, part: Path) -> str | None:
    """Complete the part from this address; the reason where that fails. What came is kept unless its sum is wrong."""
    try:
        _complete(url, part)
    except BROKEN as error:
        return f"failed ({' '.join(str(error).split()) or type(error).__name__})"
    if checksum_of(part, download.checksum) == download.checksum:
        return None
    part.unlink()
    return f"sent something else: the {download.checksum.partition(':')[0]} is wrong"


def _complete(url: str, part: Path) -> None:
    """Go on from where the address breaks off, as long as that gains anything."""
    for attempt in range(RESUMES + 1):
        before = _size(part)
        try:
            _append(url, part)
            return
        except BROKEN:
            if attempt == RESUMES or _size(part) <= before:
                raise


def _append(url: str, part: Path) -> None:
    """Ask for what is missing, and write what comes."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is missing
            return
        raise
    with response:
        start = start if response.status == 206 else 0
        length = int(response.headers.get("Content-Length") or 0)
        with (
            open(part, "ab" if start else "wb", buffering=0) as file,
            track_bytes(part.stem, start, start + length) as advance,
        ):
            while block := response.read1(BLOCK):  # what there is, should the connection break
                _store(file, block)
                advance(len(block))
        if length and _size(part) < start + length:
            raise HTTPException(f"broke off after {_size(part)} of {start + length} bytes")


def _store(file: FileIO, block: bytes) -> None:
    rest = memoryview(block)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:  # no fault of the address
        raise UserError(f"{file.name}: cannot be written ({error.strerror})") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def checksum_of(path: Path, like: str) -> str:
    """The file's sum of the kind that `like` has, as kind:digits."""
    kind = like.partition(":")[0]
    with open(path, "rb") as file:
        digest = hashlib.new(kind, usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"
