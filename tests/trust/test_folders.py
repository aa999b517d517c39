"""A run folder, an archive or a sweep of somebody else leads nowhere else, has an end, and shows what it is."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.report_folders import write_analysis, write_run

from metarun.cli.compose import compose
from metarun.config.schema import to_dict
from metarun.data import files
from metarun.data.files import open_files
from metarun.errors import UserError
from metarun.jobs.sweep.child import build_command
from metarun.report.read.jobs import list_jobs, rerun_command
from metarun.report.read.runs import read_run
from metarun.report.write import write_report
from metarun.storage.run_folder import RunFolder
from metarun.storage.text import escape_formula

SECRET = "the secret of another file"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


LINKED = ("config.yaml", "metrics.jsonl", "summary.json", "metrics.jsonl.tmp", "config.yaml.tmp", "report.html.tmp")
LINKED += ("metarun.log", "checkpoints", ".hydra", "analyses", "checkpoints/last.tmp", "wandb/latest")


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("target", ["secret", ".", "/dev/zero"])
def test_a_run_folder_with_a_link_out_of_it_is_refused(tmp_path: Path, secret: Path, name: str, target: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret.parent / target)
    with pytest.raises(UserError, match=r"is a link|no readable config.yaml"):
        RunFolder(folder).read_config()
    assert secret.read_text() == SECRET


SHOWN = ("config.yaml", "summary.json", "metrics.jsonl", "timing.jsonl", "test.json", ".hydra/overrides.yaml")
SHOWN += ("analyses/x/results.csv", "analyses/x/results.json", "analyses/x/figure.png", "job.json")


NAMES = [*SHOWN, ".hydra", "analyses", "analyses/x"]
SAMPLE = ("config.yaml", "test.json", "analyses/x/results.csv", "analyses/x/figure.png", "analyses")


@pytest.mark.parametrize("name", [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.long) for n in NAMES])
def test_a_report_shows_nothing_of_what_a_link_leads_to(tmp_path: Path, secret: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / ".hydra").mkdir()
    write_analysis(folder, "x")
    target = secret
    if "." not in Path(name).name[1:]:
        target = secret.parent
        (target / "overrides.yaml").write_text(f"[{SECRET}]")
        (target / "results.csv").write_text(f"{SECRET}\n1\n")
        (target / "x").mkdir()
        (target / "x" / "results.csv").write_text(f"{SECRET}\n1\n")
        (folder / name).rename(tmp_path / "away")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    for format in ("html", "md", "csv"):
        assert SECRET not in write_report([folder], format=format).read_text()


@pytest.mark.parametrize("name", ["report.html", "report.html.tmp", "report.md", "report.csv", "report-figures"])
def test_a_report_is_not_written_through_a_link(tmp_path: Path, secret: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).symlink_to(secret.parent if "figures" in name else secret)
    format = {".md": "md", ".csv": "csv", "": "png"}.get(Path(name).suffix, "html")
    with pytest.raises(UserError, match="is a link, which is not written to"):
        write_report([folder], format=format)
    assert secret.read_text() == SECRET
    assert len(list(secret.parent.iterdir())) == 1


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl", "timing.jsonl", "test.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert any("is not a regular file" in sentence for sentence in read_run(folder).missing)


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl"])
def test_a_file_without_end_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = write_run(tmp_path / "run")
    with open(folder / name, "wb") as file:
        file.truncate(1 << 42)  # a file with a hole: 4 TB of zeros
    began = os.times().elapsed
    assert any("bytes" in sentence for sentence in read_run(folder).missing)
    assert os.times().elapsed - began < 20
    if name == "config.yaml":
        with pytest.raises(UserError, match="it has more than 262144 bytes"):
            RunFolder(folder).read_config()


def test_names_that_leave_an_archive_are_left_out(tmp_path: Path, secret: Path) -> None:
    names = ("../../outside/secret", "/etc/passwd", "a/../../b", "C:\\x", "a\\..\\b", "./../x", "..", "good/1.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for name in names:
            zipped.writestr(name, b"x")
        link = zipfile.ZipInfo("good/link")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, str(secret))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"good/{kind!r}")
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
    for archive in ("a.zip", "a.tar.gz"):
        opened = open_files(tmp_path / archive)
        assert opened.names == ("good/1.png",)
        assert list(opened.read(opened.names)) == [b"x"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
def test_an_archive_that_would_fill_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(files, "SUSPECT", 1 << 20)  # the same with fewer bytes
    zeros = bytes(1 << 22)
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/1.png", zeros)
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as tar:  # type: ignore[call-overload]
            member = tarfile.TarInfo("a/1.png")
            member.size = len(zeros)
            tar.addfile(member, io.BytesIO(zeros))
    with pytest.raises(UserError, match="its contents have more than 100 times its size"):
        open_files(path)
    monkeypatch.setattr(files, "SUSPECT", 1 << 23)
    assert open_files(path).names == ("a/1.png",)


MEAN = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "=HYPERLINK(1)", "\\input{/etc/passwd}", "|a|b"]
MEAN += ["</pre></style><b>", "{{ 7*7 }}", "[x](javascript:alert(1))", "@SUM(1)", "$\\frac{", "\x1b[2J\x07"]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def mean_run(folder: Path, word: str) -> Path:
    named = dict.fromkeys(("algo", "data", "split", "norm", "reason", "device", "metric", "caveat", "status"), word)
    folder = write_run(folder, summary=named | {"alarms": {word: {"count": 2}}, "versions": {word: word}})
    (folder / "config.yaml").write_text(json.dumps({"job": "train", "algo": {"_target_": word}, "train": {word: word}}))
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"algo={word}"]))
    write_analysis(folder, "x")
    (folder / "analyses" / "x" / "results.csv").write_text(f'"{word.replace(chr(34), chr(34) * 2)}",b\n1,2\n')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 50, word: 1.0, "loss": 1.0}) + "\n")
    return folder


@pytest.mark.parametrize(
    "word", [w if i % 4 == 0 else pytest.param(w, marks=pytest.mark.long) for i, w in enumerate(MEAN)]
)
def test_a_report_escapes_every_text(tmp_path: Path, word: str) -> None:
    runs = [mean_run(tmp_path / "a", word), mean_run(tmp_path / "b", word)]
    for folders in (runs[:1], runs):
        page = Tags()
        page.feed(write_report(folders, tmp_path / "r.html").read_text())
        assert not {tag for tag, _ in page.seen} & {"script", "iframe", "object", "b", "link", "base"}
        addresses = [a.get("src") or a.get("href") or "" for tag, a in page.seen if tag in ("img", "a")]
        assert all(address.startswith(("data:image/", "#")) for address in addresses)
        assert not [name for _, attributes in page.seen for name in attributes if name.startswith("on")]
    markdown = write_report(runs, tmp_path / "r.md", "md").read_text()
    assert not re.search(r"(?<!\\)<(script|img|b)|(?<!\\)\]\(javascript", markdown)
    latex = write_report(runs, tmp_path / "r.tex", "latex").read_text()
    assert "\\input{" not in latex
    text = write_report(runs, tmp_path / "r.csv", "csv").read_text()
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert not [c for c in cells if c.startswith(("=", "@"))]
    assert all("\x1b" not in out for out in (text, markdown, latex))


def test_cells_that_a_spreadsheet_would_compute_are_quoted() -> None:
    assert [escape_formula(c) for c in ("=1", "+a", "-x", "@x", " =1", "-0.5", "+3", "1e-3", "-inf", "maml", "")] == [
        *("'=1", "'+a", "'-x", "'@x", "' =1", "-0.5", "+3", "1e-3", "-inf", "maml", "")
    ]  # fmt: skip


@pytest.mark.parametrize("override", ["--config-dir=/evil", "-m", "a=1\x1b[2J", "a=1\nrm", "; rm -rf ~", "$(x)", ""])
def test_a_command_has_only_overrides_in_it(tmp_path: Path, override: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(["algo=maml", override]))
    (folder / "job.json").write_text(json.dumps({"overrides": ["algo=maml", override], "status": "failed"}))
    assert read_run(folder).overrides is None
    (job,) = list_jobs([read_run(folder)], [])
    assert job.overrides is None
    assert "rm" not in rerun_command(job)


def test_a_resumed_job_is_given_its_trust_again(tmp_path: Path) -> None:
    typed = build_command(["algo=maml", "trusted_modules=[mine]"], [], tmp_path, resumes=True)
    assert typed[3:] == [f"resume='{tmp_path}'", "trusted_modules=[mine]"]


def test_what_a_run_writes_is_its_owners(tmp_path: Path, elsewhere: None) -> None:
    from metarun.data.cache import DecodedImages, cache_images

    def decoded(file: io.BytesIO) -> DecodedImages:
        file.write(bytes(4))
        return DecodedImages((1, 1, 2, 2), ("a",), [0], [1], {}, ["a/1.png"])

    before = os.umask(0o022)
    try:
        RunFolder(tmp_path / "run").create(to_dict(compose([])))
        cache_images("x", "key", decoded)  # type: ignore[arg-type]
    finally:
        os.umask(before)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert not [p for p, mode in modes.items() if mode & 0o022]
    assert not [p for p, mode in modes.items() if p.is_file() and mode & 0o111]
