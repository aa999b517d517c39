"""A command composes its settings once, and runs with the same ones as where Hydra composes them twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from metarun.cli.compose import CONFIG_PATH
from metarun.cli.compose_once import HYDRAS_GET_MODE, compose_once


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The overrides of each composition."""
    seen, real = [], ConfigLoaderImpl._load_configuration_impl

    def compose(loader: ConfigLoaderImpl, config_name: Any, overrides: list[str], *rest: Any, **more: Any) -> Any:
        seen.append([*overrides])
        return real(loader, config_name, overrides, *rest, **more)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", compose)
    monkeypatch.setattr(Hydra, "get_mode", HYDRAS_GET_MODE)
    yield seen
    GlobalHydra.instance().clear()


def settings_of(overrides: list[str], asks: Any) -> tuple[Any, Any]:
    """The mode, and the settings that a single job runs with, as `hydra.main` comes to them."""
    GlobalHydra.instance().clear()
    path = create_automatic_config_search_path(None, "metarun.cli.main", CONFIG_PATH)
    hydra, given = Hydra.create_main_hydra2("metarun", path), [*overrides]
    mode = asks(hydra, "config", given)
    if mode is None:
        given.append("hydra.mode=RUN")
    elif mode == RunMode.MULTIRUN:
        return mode, None
    return mode, OmegaConf.to_container(hydra.compose_config("config", given, RunMode.RUN))


@pytest.mark.parametrize("overrides", [["seed=3", "algo=reptile"], ["hydra.mode=RUN", "train.steps=1"]])
def test_a_single_job_composes_once_and_runs_with_the_same_settings(
    overrides: list[str], compositions: list[list[str]]
) -> None:
    expected = settings_of(overrides, Hydra.get_mode)
    assert len(compositions) == 2
    compose_once()
    assert settings_of(overrides, Hydra.get_mode) == expected
    assert len(compositions) == 3


def test_a_file_that_begins_a_sweep_begins_it(compositions: list[list[str]]) -> None:
    compose_once()
    assert settings_of(["experiment=sweep/seeds"], Hydra.get_mode)[0] == RunMode.MULTIRUN


@pytest.mark.parametrize("override", ["algo=maml,reptile", "algo=none_such", "train.steps=text"])
def test_what_a_single_job_refuses_is_refused_as_by_hydra(override: str, compositions: list[list[str]]) -> None:
    with pytest.raises(HydraException) as expected:
        settings_of([override], Hydra.get_mode)
    compose_once()
    with pytest.raises(type(expected.value)) as found:
        settings_of([override], Hydra.get_mode)
    assert str(found.value) == str(expected.value)


def test_further_compositions_of_the_job_are_composed(compositions: list[list[str]]) -> None:
    compose_once()
    GlobalHydra.instance().clear()
    path = create_automatic_config_search_path(None, "metarun.cli.main", CONFIG_PATH)
    hydra = Hydra.create_main_hydra2("metarun", path)
    Hydra.get_mode(hydra, "config", ["seed=3"])
    assert hydra.compose_config("config", ["seed=4", "hydra.mode=RUN"], RunMode.RUN).seed == 4
    assert hydra.compose_config("config", ["seed=3", "hydra.mode=RUN"], RunMode.RUN).seed == 3
    assert len(compositions) == 3
