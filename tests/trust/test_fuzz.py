# ruff: noqa: PT017  an error that may come is looked at where it comes
"""Random input of every kind: a result, or one line. Each test has few cases by default and many in the long suite.

A case that fails by an error of a kind that its reader does not promise is a bug of the reader: the functions that
are called directly may raise `UserError` and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.fuzzing import CHECKS, DAMAGE, JSON, damaged, files_below, fuzzed, metarun, sound
from helpers.report_folders import records, write_run
from hypothesis import strategies as st
from PIL import Image

from metarun.cli.compose import compose_options
from metarun.cli.report import main as report_main
from metarun.config.components import build
from metarun.config.from_run import reuse_settings
from metarun.config.schema import check, to_dict
from metarun.data.array_files import read_arrays
from metarun.data.files import open_files
from metarun.data.layouts import recognise
from metarun.data.pixels import CorruptImage, Pixels
from metarun.errors import UserError
from metarun.regularizers.build import build_regularization
from metarun.report.tables.sweep import sweep_text
from metarun.report.write import FORMATS
from metarun.storage.run_folder import RunFolder
from metarun.storage.sweep_records import read_job, read_sweep
from metarun.training import checkpoint
from metarun.training.recorder import Recorder
from metarun.training.run import State

assert CHECKS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: None) -> Path:
    """An empty current folder, so that what a command leaves can be seen."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


CONFIG = to_dict(compose_options([]))


def dotted(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")


COMPOSED: dict[tuple[str, ...], Any] = {}


def composed(overrides: Any) -> Any:
    """`cli.compose`, once for the same overrides: it takes half a second."""
    words = tuple(overrides)
    if words not in COMPOSED:
        COMPOSED[words] = compose_options(words)
    return copy.deepcopy(COMPOSED[words])


KEYS = sorted({*dotted(CONFIG), "algo", "hydra.run.dir", "hydra", "reg.l1.weight", "experiment", "analysis", "x.y"})
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "null", "???", "${seed}", "${oc.env:HOME}", "[1,2]", "{a: 1}", "1,2", "os.system", "nan", "''"]
    ),
    st.sampled_from(["maml", "omniglot", "../../x", "a" * 5000, "1e400", "[[[[", "${${seed}}", "${x}", "range(1,3)"]),
)
OVERRIDES = st.one_of(
    st.tuples(st.sampled_from(["", "+", "++", "~"]), st.sampled_from(KEYS), VALUES).map(
        lambda t: f"{t[0]}{t[1]}={t[2]}"
    ),
    st.text(max_size=20).filter(lambda word: not word.startswith("-")),
)


@fuzzed(15, words=st.lists(OVERRIDES, min_size=1, max_size=4))
def test_override_strings(here: Path, words: list[str]) -> None:
    """`--cfg job` composes and checks the schema; it runs nothing."""
    words = [word for word in words if "\0" not in word]  # no argument of a process has one
    sound(metarun(*words, "--cfg", "job"))
    assert files_below(here) == set()


@fuzzed(15, words=st.lists(OVERRIDES, min_size=1, max_size=3))
def test_settings_that_are_composed_and_checked(here: Path, words: list[str]) -> None:
    """What a run does before it builds anything large."""
    try:
        config = compose_options([w for w in words if not w.lstrip("+~").startswith(("hydra", "data", "model"))])
        check(config)
        build_regularization(config, "regression")
        build("data", {k: v for k, v in config.data.items() if k not in ("ways", "shots", "queries", "test_queries")})
    except Exception as error:
        from metarun.cli.usage_errors import describe_usage_error

        line = describe_usage_error(error)
        assert line is not None, repr(error)
        assert "\n" not in line


@fuzzed(
    20, content=st.one_of(st.binary(max_size=200), JSON.map(lambda v: yaml.safe_dump(v).encode("utf-8", "replace")))
)
def test_config_files_of_a_run(here: Path, content: bytes) -> None:
    folder = here / "run"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_bytes(content)
    for words in (["resume=run"], ["run=run", "job=evaluate"]):
        with contextlib.suppress(UserError):
            reuse_settings(composed(tuple(words)), words, composed)
            assert isinstance(yaml.safe_load(content), dict)
    assert files_below(here) == {folder / "config.yaml"}


@fuzzed(20, key=st.sampled_from(KEYS), value=JSON)
def test_single_settings_of_a_run_exchanged(here: Path, key: str, value: Any) -> None:
    config = json.loads(json.dumps(CONFIG))
    *groups, last = key.split(".")
    node = config
    for group in groups:
        node = node[group] if isinstance(node.get(group), dict) else node.setdefault(group + "_", {})
    node[last] = value
    (here / "run").mkdir(exist_ok=True)
    (here / "run" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8", errors="replace")
    try:
        again = reuse_settings(composed(("run=run", "job=evaluate")), ["run=run", "job=evaluate"], composed)
        check(again)
        build_regularization(again, "regression")
        build("algo", again.algo, again.trusted_modules)
    except UserError as error:
        assert str(error)


IMAGES = {
    name: (lambda buffer: (Image.new("RGB", (9, 7), "red").save(buffer, name), buffer.getvalue())[1])(io.BytesIO())
    for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
}


@fuzzed(100, name=st.sampled_from(sorted(IMAGES)), damage=DAMAGE)
def test_images(name: str, damage: Any) -> None:
    content = damaged(IMAGES[name], *damage)
    try:
        assert Pixels(8, 3, "lanczos").decode(content).shape == (3, 8, 8)
    except CorruptImage as error:
        assert "\n" not in str(error)


@fuzzed(60, text=st.text(max_size=200) | st.lists(st.lists(st.sampled_from(
    ["filename", "label", "split", "a.png", "../a.png", "/etc/passwd", "=1", "train", "", '"', "\0", "x" * 140_000]
), max_size=4).map(",".join), max_size=5).map("\n".join))  # fmt: skip
def test_tables(here: Path, text: str) -> None:
    (here / "a.png").write_bytes(IMAGES["PNG"])
    (here / "t.csv").write_text(text, encoding="utf-8", errors="replace")
    try:
        layout = recognise(open_files(here), "t.csv")
        assert layout is not None
        assert {entry.name for entry in layout.entries} <= {"a.png"}
    except UserError:
        pass


def archived(kind: str, names: list[str]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in dict.fromkeys(names):
                archive.writestr(name or "x", IMAGES["PNG"])
    else:
        with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as tar:  # type: ignore[call-overload]
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 4
                tar.addfile(member, io.BytesIO(b"abcd"))
    return buffer.getvalue()


NAMES = st.lists(
    st.text(max_size=10) | st.sampled_from(["../x", "/x", "a/b.png", "a//b.png", "a/./b.png", "C:x"]), max_size=4
)


@fuzzed(80, kind=st.sampled_from(["zip", "", "gz", "bz2", "xz"]), names=NAMES, damage=DAMAGE)
def test_archives(here: Path, kind: str, names: list[str], damage: Any) -> None:
    with contextlib.suppress(UnicodeError, ValueError):  # names that an archive cannot have
        whole = archived(kind, names)
        (here / "archive").write_bytes(damaged(whole, *damage))
    if not (here / "archive").exists():
        return
    try:
        opened = open_files(here / "archive")
        assert not [n for n in opened.names if n.startswith("/") or ".." in Path(n).parts]
        list(opened.read(opened.names))
    except UserError as error:
        assert "\n" not in str(error)
    assert files_below(here) == {here / "archive"}


@fuzzed(80, damage=DAMAGE, protocol=st.integers(0, 5), value=st.none() | JSON)
def test_pickles(here: Path, damage: Any, protocol: int, value: Any) -> None:
    whole = {"image_data": np.zeros((4, 2, 2, 3), np.uint8), "class_dict": {"a": [0, 1], "b": np.array([2, 3])}}
    for split in ("train", "val", "test"):
        stored = pickle.dumps(whole if value is None else {**whole, "class_dict": value}, protocol)
        (here / f"mini-imagenet-cache-{split}.pkl").write_bytes(damaged(stored, *damage))
    try:
        found = read_arrays(open_files(here))
        assert found is not None
        list(found[1](found[0].entries))
    except UserError as error:
        assert "\n" not in str(error)


def state() -> State:
    params = {"w": torch.zeros(2, 2)}
    return State(params, torch.optim.Adam(params.values()))


@fuzzed(80, damage=DAMAGE, key=st.sampled_from(["", "step", "params", "optimizer", "best_error", "spent"]), value=JSON)
def test_checkpoints(here: Path, damage: Any, key: str, value: Any) -> None:
    path = here / "last.pt"
    whole = state()
    whole.optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 2)
    whole.optimizer.step()
    checkpoint.save(path, whole)
    checkpoint.previous_checkpoint(path).unlink(missing_ok=True)
    if key:
        stored = torch.load(path, weights_only=True)
        with contextlib.suppress(Exception):  # what torch cannot store
            torch.save(stored | {key: value}, path)
    path.write_bytes(damaged(path.read_bytes(), *damage))
    fresh = state()
    try:
        checkpoint.restore(path, fresh)
        fresh.optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 2)
        fresh.optimizer.step()
    except UserError as error:
        assert "\n" not in str(error)


FILES = ("summary.json", "metrics.jsonl", "timing.jsonl", "test.json", "config.yaml", "job.json", "sweep.json")
OFTEN = (*FORMATS, *3 * [name for name in FORMATS if name not in ("html", "png")])  # what is not drawn is quick
TREES = st.dictionaries(st.sampled_from(sorted([
    *("status", "algo", "data", "kind", "metric", "mean", "ci95", "curve", "alarms", "versions", "convergence", "seed"),
    *("steps", "scores", "step", "loss", "grad_norm", "query_loss", "overrides", "number", "visits", "headline_step"),
    *("episodes_sha256", "regularization", "diagnostics", "n_tasks", "ways", "shots", "val_error", "seconds", "train"),
])), JSON, max_size=6)  # fmt: skip


@fuzzed(
    12,
    name=st.sampled_from(FILES),
    values=TREES,
    format=st.sampled_from(OFTEN),
    both=st.booleans(),
    raw=st.binary(max_size=60),
)
def test_reports(here: Path, name: str, values: dict[str, Any], format: str, both: bool, raw: bytes) -> None:
    import shutil

    for left in here.iterdir():
        shutil.rmtree(left)
    folder = write_run(here / "runs" / "a")
    if both:
        write_run(here / "runs" / "b")
    if name == "metrics.jsonl":
        lines = [record | values | {"step": record["step"]} for record in records()]
        (folder / name).write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + raw)
    elif name in ("summary.json", "config.yaml"):
        whole = json.loads((folder / "summary.json").read_text()) if name == "summary.json" else CONFIG
        (folder / name).write_text(json.dumps({**whole, **values}) + ("" if len(raw) < 50 else str(raw)))
    else:
        (folder / name).write_text(json.dumps(values))
    before = set(here.rglob("*"))
    from helpers.fuzzing import called

    end = called(lambda: report_main([str(here / "runs"), "--format", format]), ["metarun-report"])
    sound(end)
    assert end.code in (0, 2), end.err
    assert all(p.relative_to(here).parts[1].startswith("report") for p in {*here.rglob("*")} - before)
    read_job(folder), read_sweep(folder)
    assert all(line.isprintable() for line in sweep_text(here / "runs"))


@fuzzed(60, lines=st.lists(TREES.map(json.dumps) | st.text(max_size=30), max_size=8))
def test_records_that_a_resumed_run_finds(here: Path, lines: list[str]) -> None:
    """What is kept of them goes through the alarms, as in a resumed run."""
    from metarun.config.schema import DiagnosticsConfig
    from metarun.diagnostics.alarms import Alarms, Baseline
    from metarun.diagnostics.chance import Chance

    whole = [json.dumps({**record, **(json.loads(line) if line.startswith("{") and line.endswith("}") else {})})
             for record, line in zip(records(), lines, strict=False) if _is_json(line)]  # fmt: skip
    text = "\n".join([*lines, *whole]) + "\n"
    (here / "metrics.jsonl").write_text(text, encoding="utf-8", errors="replace")
    (here / "timing.jsonl").write_text(text, encoding="utf-8", errors="replace")
    folder = RunFolder(here)
    folder.drop_after(30)
    alarms = Alarms(DiagnosticsConfig(), Baseline(Chance(1.0, 1.0), "mse", False, True))
    for record in folder.read_records():
        alarms.observe(record["kind"], record["step"], record)


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return not line.startswith("{")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["algo.inner_lr=\x1b"], ["seed=${oc.env:NOTHING}"], ["run=x", "job=evaluate"], ["\udcff=1"]]
)
def test_real_processes(tmp_path: Path, words: list[str]) -> None:
    import subprocess
    import sys

    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "metarun", *words], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert Recorder


def test_an_error_that_nobody_foresaw_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metarun import jobs

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("what\nnobody foresaw")

    monkeypatch.setattr(jobs, "run", fail)
    end = metarun("hydra.run.dir=run")
    assert end.code == 1
    log = Path("run/metarun.log")
    said = "internal error: ZeroDivisionError: what nobody foresaw; please report it with the traceback in"
    assert end.err.splitlines() == [f"metarun: {said} {here / log}"] or end.err.splitlines() == [
        f"metarun: {said} {log}"
    ]
    assert "in fail\n" in log.read_text()
    monkeypatch.setenv("METARUN_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        metarun("hydra.run.dir=run")


def test_an_error_of_the_report_that_nobody_foresaw_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from metarun.cli import report as report_cli

    def fail(*_: Any, **_more: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(report_cli, "write_report", fail)
    with pytest.raises(SystemExit) as end:
        report_main([str(here)])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metarun-report: internal error: ZeroDivisionError; please report it with the traceback in ")
    log = Path(line.rpartition(" ")[2])
    assert "in fail\n" in log.read_text()
    log.unlink()
