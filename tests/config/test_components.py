"""From settings to objects: what a target may name, and what its settings may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from metarun.config import catalogue, components
from metarun.config.components import build, construct
from metarun.errors import SettingError, UserError


@pytest.mark.parametrize("group", ["algo", "data", "model", "reg", "analysis"])
def test_every_option_that_ships_is_a_component_of_its_group(group: str) -> None:
    for name in catalogue.list_options(group):
        node = catalogue.read_component(group, name)
        for inner in [node, *(v for v in node.values() if isinstance(v, dict))]:
            if inner.get("_target_"):  # the option of a Python object has none
                assert components.locate(group, inner)


@pytest.mark.parametrize(
    "target", ["metarun..x", ".os.system", "metarun.\0.x", "metarun.algorithms.maml.", "a b.c", "."]
)
def test_a_target_that_is_no_path_is_refused(target: str) -> None:
    with pytest.raises(SettingError):
        components.locate("algo", {"_target_": target}, ["", "a b"])


def test_a_component_of_the_users_own_needs_only_its_package_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "class Penalty:\n    def __init__(self, weight: float = 1.0):\n        self.weight = weight\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "mine.Penalty", "weight": 2}
    with pytest.raises(SettingError, match="add its package to trusted_modules"):
        build("reg", node)
    assert build("reg", node, ["mine"]).weight == 2.0


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float, "a number"),
        (bool, "true or false"),
        (tuple[str, ...] | None, "a list of words, or null"),
        (tuple[float, float], "a list of 2 numbers"),
        (Optional[int], "a whole number, or null"),
        (Literal["mean", "sum"], "one of mean, sum"),
        (dict[str, Any], "a group of settings, as {key: value}"),
        (Path, "of type Path"),
    ],
)
def test_a_type_is_told_in_words(hint: Any, words: str) -> None:
    assert components.describe_type(hint) == words


@pytest.mark.parametrize("group", ["algo", "data"])
def test_a_yaml_without_its_package_line_is_told_the_line(group: str) -> None:
    """Hydra then puts what stands at `algo` in it at `algo.algo`."""
    with pytest.raises(UserError, match=f"^{group}.{group}: .* must begin with the line `# @package _global_`$"):
        components.locate(group, {group: {"_target_": "own.Ridge"}}, ["own"])


def test_a_setting_of_another_part_is_pointed_to() -> None:
    from metarun.models.mlp import mlp

    with pytest.raises(UserError, match=r"^model\.pretrained: no such setting, did you mean train\.pretrained\?$"):
        construct("model", mlp, {"pretrained": "RUN"}, input_shape=(1,), outputs=1)
    with pytest.raises(UserError, match=r"^model\.hiden: no such setting, did you mean hidden\?$"):
        construct("model", mlp, {"hiden": [3]}, input_shape=(1,), outputs=1)
