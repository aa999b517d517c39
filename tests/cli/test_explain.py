"""`metarun help WORD`: defaults and meanings from where they are declared."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from metarun.cli.explain import OPEN, declared, explain, lay_out, option_settings
from metarun.cli.main import run_command
from metarun.config import catalogue
from metarun.config.schema import Config, to_plain
from metarun.errors import UserError


@pytest.mark.parametrize("group", OPEN)
def test_every_setting_of_every_option_is_listed_with_its_default(group: str) -> None:
    for option in catalogue.list_options(group):
        found = {s.key: s.default for s in option_settings(group, option)}
        own = catalogue.read_component(group, option)
        for key in own.keys() - {"_target_", "defaults"}:
            if not isinstance(own[key], (dict, list)) or found[f"{group}.{key}"]:  # or on lines of its own
                assert yaml.safe_load(found[f"{group}.{key}"]) == own[key], (option, key)


def test_every_field_of_the_schema_is_listed_with_its_default() -> None:
    for field in dataclasses.fields(Config):
        kind = type(getattr(Config(), field.name))
        if not dataclasses.is_dataclass(kind):
            continue
        found = {s.key: s.default for s in declared(kind, "")}
        for inner in dataclasses.fields(kind):
            value = getattr(kind(), inner.name)
            if dataclasses.is_dataclass(value):
                assert f"{inner.name}." in " ".join(found)
            else:
                shown = {None: "null", True: "true", False: "false"}
                expected = shown.get(value, value) if not isinstance(value, list) else to_plain(value)
                assert found[inner.name] == str(expected) or float(found[inner.name]) == value


def test_an_option_has_the_meanings_of_the_file_it_is_made_from() -> None:
    meanings = {s.key: s.meaning for s in option_settings("algo", "anil")}
    assert meanings["algo.inner_lr"] == "on the mean support loss"
    assert explain("algo.anil.inner_lr").splitlines()[-1] == "algo.inner_lr  0.01  on the mean support loss"
    assert explain("algo=anil").splitlines()[0].startswith("algo=anil: ANIL (")
    assert "algo=imaml" in explain("algo")
    assert explain("seed").startswith("seed  0  ")


def test_every_setting_has_a_meaning() -> None:
    groups = {f.name: type(getattr(Config(), f.name)) for f in dataclasses.fields(Config)}
    settings = [
        s for name, kind in groups.items() if dataclasses.is_dataclass(kind) for s in declared(kind, f"{name}.")
    ]
    settings += [
        s for group in OPEN for option in catalogue.list_options(group) for s in option_settings(group, option)
    ]
    assert [s.key for s in settings if not s.meaning] == []


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("foo", "help foo: no such setting, "),
        ("algo.imamm", "help algo.imamm: algo has no option imamm, did you mean imaml"),
        ("optim.lrr", "help optim.lrr: no such setting, did you mean optim.lr"),
        ("algo.maml.rate", "help algo.maml.rate: no such setting, "),
    ],
)
def test_an_unknown_word_is_answered_by_the_nearest(word: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        explain(word)
    assert str(refused.value).startswith(line)


def test_meanings_are_wrapped_below_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = explain("device").splitlines()
    assert max(map(len, lines)) <= 80
    start = next(line for line in lines if line.startswith("device.memory_mb")).index("2^20")
    assert any(line.startswith(" " * start) and line[start] != " " for line in lines)
    assert lay_out(option_settings("data", "folder"))


@pytest.mark.parametrize("words", [["help", "optim"], ["--help", "optim"]])
def test_it_is_a_word_of_the_command_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["metarun", *words])
    assert run_command() == 0
    assert "optim.lr " in capsys.readouterr().out
