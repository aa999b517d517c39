"""The sizes of training and test episodes, from the settings and what the data set has."""

from __future__ import annotations

from dataclasses import replace

from metarun.config.data_sets import EPISODE_SIZE
from metarun.config.schema import Config
from metarun.errors import SettingError, require
from metarun.types import Dataset, DatasetOptions, EpisodeSpec, optional

TRAINING_SIZE = ("train_ways", "train_shots")
"""Settings of `algo` that size the training episodes, not the algorithm."""

WAYS = 5  # of a classification whose settings leave them open


def fill_ways(config: Config, dataset: Dataset) -> Config:
    """The settings with a number of ways in place of null: 5 for classes, or as many as there are; 1 for tasks."""
    if "ways" not in config.data or config.data["ways"] is not None:
        return config
    most = max(2, optional(dataset, DatasetOptions, "most_ways") or WAYS)
    ways = min(WAYS, most) if dataset.kind == "classification" else 1
    return replace(config, data=type(config.data)({**config.data, "ways": ways}))


def shots_range(config: Config) -> tuple[int, int] | None:
    """[fewest, most] shots of training tasks, where `data.shots` is a range; None where it is a number."""
    shots = config.data.get("shots")
    if not isinstance(shots, list):
        return None
    whole = len(shots) == 2 and all(isinstance(k, int) and not isinstance(k, bool) for k in shots)
    require(whole, "data.shots", shots, "must be a whole number, or [fewest, most]")
    alone = config.algo.get("train_shots") is None
    require(alone, "algo.train_shots", config.algo.get("train_shots"), "must be null where data.shots is a range")
    return shots[0], shots[1]


def episode_sizes(config: Config) -> tuple[EpisodeSpec, EpisodeSpec]:
    """The sizes of training and of test episodes; of a range of shots the most."""
    shots = shots_range(config)
    data, algo = {**config.data, **({"shots": shots[1]} if shots else {})}, config.algo
    for key in EPISODE_SIZE:
        if not isinstance(data.get(key), int) or isinstance(data.get(key), bool) or data[key] < 1:
            raise SettingError(f"data.{key}", data.get(key), "must be a whole number of at least 1")
    for key in TRAINING_SIZE:
        value = algo.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise SettingError(f"algo.{key}", value, "must be a whole number of at least 1, or null for the test's")
    ways, shots = algo.get("train_ways") or data["ways"], algo.get("train_shots") or data["shots"]
    train = EpisodeSpec(ways, shots, data["queries"])
    return train, EpisodeSpec(data["ways"], data["shots"], data["test_queries"])
