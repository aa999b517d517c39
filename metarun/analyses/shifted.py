"""An experiment under a shift of its test tasks, given by a few keys; `Impossible` says why this run cannot have it.

shots, ways                       the size of test episodes
rotate, blur, contrast, noise     of all test images (data/changes.py)
classes                           of test episodes: train, val; within_groups (all of an episode of one group);
                                  new_groups, seen_groups (those of groups that training has none of, or some of)
any other                         a setting data.*, with which the test episodes are drawn
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metarun.config.components import construct
from metarun.data.images import ImageData, Index
from metarun.data.pool import TaskPool
from metarun.data.shifts import ChangedImages, Episodes, ImageChange, Shifted, WithinGroups, by_group, with_test_classes
from metarun.errors import SettingError, UserError, nearest, require
from metarun.training.experiment import EPISODE_SIZE, Experiment, build_dataset, build_learner
from metarun.types import Dataset, EpisodeSpec

SIZES = ("shots", "ways")
CHANGES = tuple(f.name for f in dataclasses.fields(ImageChange))
CLASSES = ("train", "val", "within_groups", "new_groups", "seen_groups")


class Impossible(Exception):
    """This run cannot be tested under the shift; the message says why, after its name."""


class Shift(NamedTuple):
    experiment: Experiment
    paired: bool  # task i is the task i without the shift, changed


def shifted(experiment: Experiment, changes: Mapping[str, Any], name: str) -> Shift:
    """The experiment with other test tasks. `UserError` for a key or value that no run could have: it says `name`,
    under which the changes are set."""
    sizes = {k: v for k, v in changes.items() if k in SIZES}
    for key, value in sizes.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(whole, f"{name}.{key}", value, "must be a whole number of at least 1")
    others = {k: v for k, v in changes.items() if k not in sizes}
    tested = _episodes(experiment, others, name)
    dataset = Shifted(experiment.dataset, tested) if others else experiment.dataset
    return Shift(_resized(experiment, dataset, sizes), paired=not sizes and "classes" not in changes)


def _episodes(experiment: Experiment, changes: Mapping[str, Any], name: str) -> Episodes:
    """Settings first, then classes, then images."""
    data = inside(experiment.dataset)
    of_images = (*CHANGES, "classes") if isinstance(data, ImageData) else ()
    settings = {k: v for k, v in changes.items() if k not in of_images}
    tested: Any = _with_settings(experiment, settings, name) if settings else data
    classes = changes.get("classes")
    if classes is not None and "classes" not in settings:
        require(classes in CLASSES, f"{name}.classes", classes, "choices: " + ", ".join(CLASSES))
        tested = _with_classes(tested, classes, pooled=data is not experiment.dataset)
    images = {k: v for k, v in changes.items() if k in CHANGES and k in of_images}
    if isinstance(data, ImageData) and images:
        change = construct(name, ImageChange, images)
        tested = ChangedImages(tested, data.pixels, change)
    return tested


def inside(dataset: Dataset) -> Dataset:
    """The data set that a pool of training tasks is taken from; test tasks are its own."""
    return dataset.dataset if isinstance(dataset, TaskPool) else dataset


def same_size(experiment: Experiment, changes: Mapping[str, Any]) -> bool:
    """Whether nothing is changed but sizes, and these to what they are."""
    return all(k in SIZES and getattr(experiment.test_spec, k) == v for k, v in changes.items())


def _with_settings(experiment: Experiment, settings: Mapping[str, Any], name: str) -> Dataset:
    config = experiment.config
    valid = [k for k in config.data if k not in (*EPISODE_SIZE, "_target_")]
    also = (*SIZES, *CHANGES, "classes") if isinstance(inside(experiment.dataset), ImageData) else SIZES
    for key in settings:
        if key not in valid:
            raise UserError(f"{name}.{key}: no such shift of these data, {nearest(key, (*valid, *also))}")
    return build_dataset(dataclasses.replace(config, data=config.data | dict(settings)))


def _with_classes(data: Any, classes: str, pooled: bool) -> Episodes:
    splits = data.source.splits
    if classes == "within_groups":
        _refuse_unnamed(by_group(data, splits["test"]))
        return WithinGroups(data)
    if classes == "train" and pooled:
        raise Impossible("training saw the tasks of its pool, not all of these classes")
    return with_test_classes(data, splits[classes] if classes in splits else of_groups(data, classes))


def of_groups(data: ImageData, classes: str) -> Index:
    """The test classes of groups that training has some of (`seen_groups`) or none of."""
    test = data.source.splits["test"]
    groups = by_group(data, test)
    _refuse_unnamed(groups)
    seen = by_group(data, data.source.splits["train"])
    chosen = sorted(i for g, ids in groups.items() if (g in seen) == (classes == "seen_groups") for i in ids)
    if not chosen:
        raise Impossible("no test class is of such a group")
    if len(chosen) == len(test):
        raise Impossible("all test classes are of such groups: it is the row without a shift")
    return np.array(chosen, dtype=np.intp)


def _refuse_unnamed(groups: Mapping[str, Index]) -> None:
    if not groups:
        raise Impossible("the names of the classes tell no groups, as GROUP/CLASS would")


def _resized(experiment: Experiment, dataset: Dataset, sizes: Mapping[str, Any]) -> Experiment:
    spec = experiment.test_spec._replace(**sizes)
    learner = experiment.tested
    if spec.ways != experiment.test_spec.ways:
        learner = _with_ways(experiment, dataset, spec)
    try:
        dataset.check("test", spec)
    except SettingError as error:
        raise Impossible(str(error)) from error
    return dataclasses.replace(experiment, dataset=dataset, test_spec=spec, tested=learner)


def _with_ways(experiment: Experiment, dataset: Dataset, spec: EpisodeSpec) -> Any:
    ways = experiment.test_spec.ways
    if experiment.tested.head and dataset.outputs(spec.ways) != dataset.outputs(ways):
        raise Impossible(f"the network has one output per class, so it keeps to {ways} ways")
    return build_learner(experiment.config, dataset, spec.ways)
