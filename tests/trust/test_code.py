# ruff: noqa: PT012  an error that may come is looked at where it comes
"""Nothing that is read from a file runs code: a malicious sample of every kind of file is refused or harmless."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.report_folders import write_run

import metarun
from metarun.cli.compose import compose
from metarun.config import components
from metarun.config.from_run import read_other_run
from metarun.config.schema import to_dict
from metarun.data.array_files import read_arrays
from metarun.data.cache import DecodedImages, cache_images
from metarun.data.files import open_files
from metarun.data.pixels import CorruptImage, Pixels
from metarun.data.unpickling import HarmlessUnpickler
from metarun.errors import SettingError, UserError
from metarun.report.read.runs import read_run
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.training.experiment import build_dataset

MARK = "METARUN_TEST_MARK"


class Bomb:
    """Unpickled without care, it sets a variable of this process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, (MARK, "1")


class Exec:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').environ.__setitem__('{MARK}', '1')",)


@pytest.fixture(autouse=True)
def _nothing_ran() -> Any:
    os.environ.pop(MARK, None)
    yield
    assert MARK not in os.environ


def test_the_sample_is_malicious() -> None:
    pickle.loads(pickle.dumps(Exec()))
    assert os.environ.pop(MARK) == "1"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_names_a_function_is_not_loaded(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "last.pt"
    stored = {"format": 1, "step": 1, "params": {"w": torch.zeros(1)}, "optimizer": Exec()}
    torch.save(stored, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"no checkpoint to read: last.pt is damaged"):
        checkpoint.load(path)


def test_a_bare_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(pickle.dumps(Exec()))
    with pytest.raises(UserError, match=r"last.pt is damaged"):
        checkpoint.load(tmp_path / "last.pt")


def test_a_checkpoint_that_unpacks_to_more_than_its_size_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"format": 1, "params": {"w": torch.zeros(1 << 20)}}, tmp_path / "whole.pt")
    path = tmp_path / "last.pt"
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(UserError, match="it holds more bytes than it has"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"params": [1]},
        {"params": {"w": 3}},
        {"step": -1},
        {"step": "1"},
        {"best_error": None},
        {"spent": [1]},
        {"optimizer": None},
    ],
)
def test_a_checkpoint_of_other_contents_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = {"format": 1, "step": 1, "params": {}, "optimizer": {}, "best_error": 1.0, "best_step": 0, "seconds": 1.0}
    torch.save(whole, tmp_path / "last.pt")
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 1
    torch.save(whole | changes, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last.pt is no checkpoint of metarun"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("payload", [Exec(), Bomb(), {"image_data": Exec()}, subprocess.Popen, np.load])
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_images_that_names_anything_else_is_refused(payload: Any, protocol: int) -> None:
    with pytest.raises(pickle.UnpicklingError, match="only arrays and plain containers"):
        HarmlessUnpickler(io.BytesIO(pickle.dumps(payload, protocol)), encoding="latin1").load()


def test_a_cache_is_numbers_and_json(tmp_path: Path, elsewhere: None) -> None:
    def decoded(file: Any) -> DecodedImages:
        file.write(bytes(4))
        return DecodedImages((1, 1, 2, 2), ("a",), [0], [1], {}, ["a/1.png"])

    made = cache_images("x", "key", decoded)
    made.path.with_suffix(".json").write_bytes(pickle.dumps(Exec()))
    assert cache_images("x", "key", decoded).table.names == ("a",)


@pytest.mark.parametrize(
    "changes", [{"starts": [9]}, {"counts": [9]}, {"starts": [-1]}, {"names": [1]}, {"notes": 1}, {"files": []}]
)
def test_a_cache_with_rows_that_are_not_there_is_built_again(
    tmp_path: Path, elsewhere: None, changes: dict[str, Any]
) -> None:
    from metarun.storage.json_values import json_checksum

    def decoded(file: Any) -> DecodedImages:
        file.write(bytes(4))
        return DecodedImages((1, 1, 2, 2), ("a",), [0], [1], {}, ["a/1.png"])

    path = cache_images("x", "key", decoded).path.with_suffix(".json")
    stored = json.loads(path.read_text()) | changes
    stored.pop("sum")
    path.write_text(json.dumps(stored | {"sum": json_checksum(stored)}))
    table = cache_images("x", "key", decoded).table
    assert (table.names, list(table.starts), list(table.counts)) == (("a",), [0], [1])


def test_yaml_that_names_python_is_no_settings(tmp_path: Path) -> None:
    evil = f"!!python/object/apply:os.putenv [{MARK}, '1']\n"
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text(evil)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(evil)
    (folder / ".hydra" / "hydra.yaml").write_text(evil)
    with pytest.raises(UserError, match=r"config.yaml: cannot be read"):
        RunFolder(folder).read_config()
    assert read_run(folder).config == {}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_picture_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript draw an EPS, whatever the name of its file."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(subprocess, "check_call", refuse)
    with pytest.raises(CorruptImage, match="its format is none of JPEG, PNG"):
        Pixels(28, 1, "lanczos").decode(EPS)


def run_folder(tmp_path: Path, **changes: Any) -> Path:
    """A run folder whose settings are whole, with some of them exchanged."""
    folder = tmp_path / "run"
    config = compose([])
    RunFolder(folder).create(to_dict(config) | changes)
    return folder


def reused(folder: Path, *overrides: str, key: str = "run") -> Any:
    typed = [f"{key}={folder}", *(["job=evaluate"] if key == "run" else []), *overrides]
    return compose(typed)


TARGETS = {
    "algo": (
        "os.system",
        "metarun.jobs.sweep.child.run_child",
        "metarun.jobs.import_module",
        "metarun.data.sinusoid.Sinusoid",
    ),
    "data": (
        "subprocess.run",
        "metarun.jobs.sweep.child.run_child",
        "metarun.data.fetch.fetch",
        "metarun.data.files.os",
    ),
    "model": ("builtins.eval", "metarun.training.checkpoint.load", "metarun.models.norm.check_norm"),
    "reg": ("evil.Penalty", "metarun.config.components.build", "metarun.jobs.export.job.export_job"),
    "analysis": ("pty.spawn", "metarun.cli.main.main", "metarun.analyses.analysis.write_csv"),
}  # fmt: skip


@pytest.mark.parametrize(("group", "target"), [(g, t) for g, targets in TARGETS.items() for t in targets])
def test_a_target_that_is_no_component_of_its_group_is_refused(group: str, target: str) -> None:
    with pytest.raises(SettingError, match=rf"^{group}\._target_="):
        components.locate(group, {"_target_": target})


def test_a_target_is_refused_before_its_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(f"import os\nos.environ['{MARK}'] = '1'\n")
    monkeypatch.syspath_prepend(tmp_path)
    for group in TARGETS:
        with pytest.raises(SettingError, match="add its package to trusted_modules"):
            components.locate(group, {"_target_": "evil.Thing"}, ["evi", "evil.other"])


def test_what_a_trusted_module_imports_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_nets.py").write_text(
        "from os import putenv\nfrom torch import load, nn\nclass Net(nn.Module): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert components.locate_trusted("model.target", "mine_nets.Net", ["mine_nets"]).__name__ == "Net"
    for name, home in (("putenv", "posix"), ("load", "torch.serialization"), ("nn.Linear", "")):
        with pytest.raises(SettingError, match=f"is defined in {home}; name it there|cannot be imported"):
            components.locate_trusted("model.target", f"mine_nets.{name}", ["mine_nets"])


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("run", "algo"),
        *(pytest.param("run", group, marks=pytest.mark.long) for group in ("data", "model", "reg")),
        ("resume", "data"),
    ],
)
def test_a_run_folder_cannot_trust_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, group: str
) -> None:
    (tmp_path / "evil.py").write_text(f"import os\nos.environ['{MARK}'] = '1'\ndef thing(**_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = run_folder(tmp_path, trusted_modules=["evil"], **{group: {"_target_": "evil.thing", "weight": 1}})
    config = reused(folder, key=key)
    assert config.trusted_modules == []
    with pytest.raises(SettingError, match=rf"^{group}\._target_=evil.thing: is outside of metarun"):
        components.locate(group, getattr(config, group), config.trusted_modules)
    assert reused(folder, "trusted_modules=[mine]", key=key).trusted_modules == ["mine"]


@pytest.mark.parametrize(
    "choices",
    [
        {"hydra.searchpath": "[pkg://evil]"},
        {"hydra/launcher": "evil"},
        {"+trusted_modules": "[evil]"},
        {"algo": "../../x"},
        *(
            pytest.param(choices, marks=pytest.mark.long)
            for choices in ({"algo": "maml,reptile"}, {"algo": "${oc.env:HOME}"}, {"algo": ["maml"]}, ["algo"])
        ),
    ],
)
def test_choices_of_a_run_folder_are_options_of_groups(tmp_path: Path, choices: Any) -> None:
    with pytest.raises(UserError):
        reused(run_folder(tmp_path, choices=choices))


@pytest.mark.parametrize(
    "changes",
    [
        {"logger": {"name": "none", "project": "${oc.env:PATH}"}},
        {"trusted_modules": ["${oc.env:PATH}"]},
        {"data": {"root": "${metarun.folder:null,/../../x,a,b,null,null}"}},
        {"hydra": {"callbacks": {"x": {"_target_": "os.system"}}}},
        {"train": 3},
        *(
            pytest.param(changes, marks=pytest.mark.long)
            for changes in ({"${oc.env:PATH}": 1}, {"seed": {"a": 1}}, {"algo": "???"}, {"data": []})
        ),
    ],
)
def test_settings_of_a_run_folder_are_plain(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        reused(run_folder(tmp_path, **changes))


def test_downloads_are_not_taken_from_a_run_folder(tmp_path: Path) -> None:
    urls = [{"file": ".profile", "checksum": "md5:" + 32 * "0", "urls": ["https://evil.example/x"]}]
    data = compose(["data=folder"]).data | {"root": str(tmp_path), "urls": urls}
    folder = run_folder(tmp_path, data=data, choices={"data": "folder"})
    assert reused(folder).data["urls"] == []
    assert reused(folder).data["root"] == str(tmp_path)
    with pytest.raises(SettingError, match="must begin with https"):
        from metarun.data.fetch import parse_downloads

        parse_downloads([urls[0] | {"urls": ["file:///etc/passwd"]}])


def test_the_sets_of_a_mixture_download_and_run_no_more_than_one_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = to_dict(compose(["data=mixed", "data.sets={omniglot: /characters, cub: /birds}"]))["data"]
    shipped = mixed["sets"]["omniglot"]["urls"]
    for member in mixed["sets"].values():
        member["urls"] = [{"file": ".profile", "checksum": "md5:" + 32 * "0", "urls": ["https://evil.example/x"]}]
    config = reused(run_folder(tmp_path, data=mixed, choices={"data": "mixed"}))
    sets = config.data["sets"]
    assert [member["urls"] for member in sets.values()] == [shipped, []]
    assert "reading data.sets.cub.root=/birds" in capsys.readouterr().err
    for wrong in ({"_target_": "os.system"}, {"_target_": "metarun.storage.run_folder.RunFolder"}, "/birds", None):
        sets["cub"] = wrong
        with pytest.raises(UserError, match=r"sets\.cub|_target_"):
            build_dataset(config)


def test_a_run_beside_the_one_of_the_command_decides_no_more_than_that_one(tmp_path: Path) -> None:
    """Downloads are those that metarun ships for its data set, or the command's for the same one."""
    evil = [{"file": ".profile", "checksum": "md5:" + 32 * "0", "urls": ["https://evil.example/x"]}]
    for option in ("omniglot", "cub"):
        data = to_dict(compose([f"data={option}"]))["data"] | {"urls": evil}
        device = {"name": "cuda", "threads": 64}
        changes = {"data": data, "choices": {"data": option}, "trusted_modules": ["evil"], "device": device}
        folder = run_folder(tmp_path / option, **changes)
        command = compose(["data=cub", "trusted_modules=[mine]", "device.threads=2"])
        command.data["urls"] = mine = [evil[0] | {"urls": ["https://mine.example/x"]}]
        config = read_other_run(str(folder), command)
        shipped = compose(["data=omniglot"]).data["urls"]
        assert config.data["urls"] == {"omniglot": shipped, "cub": mine}[option]
        assert (config.trusted_modules, config.job, config.run) == (["mine"], "evaluate", None)
        assert (config.device.name, config.device.threads) == (command.device.name, 2)


def test_what_a_run_folder_has_read_elsewhere_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = compose(["data=folder"]).data | {"root": "/photos\x1b[2J"}
    reused(run_folder(tmp_path, data=data, choices={"data": "folder"}))
    assert "reading data.root=/photos\\x1b[2J" in capsys.readouterr().err


def test_settings_that_grow_without_end_are_refused(tmp_path: Path) -> None:
    """A billion laughs: nine lists of nine aliases are 4e8 values in 300 bytes."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 10)]
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"config.yaml: cannot be read"):
        RunFolder(folder).read_config()
    assert "config.yaml is damaged; the settings are unknown." in read_run(folder).missing
    (folder / "config.yaml").write_text(f"a: {1000 * '['}{1000 * ']'}")
    with pytest.raises(UserError, match=r"config.yaml: cannot be read"):
        RunFolder(folder).read_config()
    (folder / "config.yaml").write_text("a: &a [*a]")
    with pytest.raises(UserError, match=r"config.yaml: cannot be read"):
        RunFolder(folder).read_config()


def test_whole_settings_are_read_as_ever(tmp_path: Path) -> None:
    config = reused(run_folder(tmp_path), "test.tasks=3")
    assert config.test.tasks == 3
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["test"]["tasks"] == 10000
    assert metarun.compose([]).algo == config.algo


def test_lists_of_lists_in_a_pickle_are_not_multiplied(tmp_path: Path) -> None:
    """Twelve lists of ten references each would be 1e12 numbers."""
    rows: list[Any] = [0]
    for _ in range(12):
        rows = 10 * [rows]
    stored = {"image_data": np.zeros((1, 2, 2, 3), np.uint8), "class_dict": {"a": rows}}
    for split in ("train", "val", "test"):
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(stored))
    with pytest.raises(UserError, match="its lists are not of arrays or whole numbers"):
        read_arrays(open_files(tmp_path))


def test_a_checkpoint_with_a_changed_byte_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": 1, "params": {"w": torch.ones(64)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(1).numpy().tobytes() * 64) + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="a checksum is wrong"):
        checkpoint.load(path)
