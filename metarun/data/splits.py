"""The split of classes into training, validation and test.

given   the split of the layout: its csv files, a csv's column `split`, or its folders train, val, test
ravi    and the other names in benchmarks.py: a published split
ratio   a seeded shuffle of the class names, cut at data.ratios; null: RATIOS, but FEWEST classes for each of val and
        test, or a third of all, where these would have fewer
all     every class is a test class: for a run that was trained on other data
auto    given if the layout has a split, else the published one if all classes are those of the benchmark, else ratio;
        without a benchmark, ravi for the hundred classes of miniImageNet
PATH    a split.json as in a run folder, or a folder with train.txt, val.txt, test.txt: one class name per line
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metarun.compute.random import SPLITS, choose, random_bits
from metarun.data.benchmarks import BENCHMARKS, PUBLISHED
from metarun.data.files import expand_path
from metarun.data.images import Index
from metarun.errors import SettingError, UserError, one_line, require
from metarun.types import Split

SPLIT_NAMES = ("auto", "given", *PUBLISHED, "ratio", "all")

RATIOS = (0.6, 0.2, 0.2)
FEWEST = 5  # classes that make a usual task

Members = Mapping[Split, Sequence[str]]
"""The class names of each split."""


class SplitSettings(NamedTuple):
    split: str
    split_seed: int  # of ratio
    ratios: tuple[float, ...] | None  # None: by the number of classes


def check_split(settings: SplitSettings) -> None:
    """Raise `SettingError` if the settings cannot work, whatever the classes."""
    require(
        settings.split in SPLIT_NAMES or _exists(settings.split),
        "split",
        settings.split,
        f"choices: {', '.join(SPLIT_NAMES)}, or a split.json or folder that exists",
    )
    require(0 <= settings.split_seed < 2**63, "split_seed", settings.split_seed, "must be at least 0")
    ratios = settings.ratios
    if ratios is None:
        return
    sound = len(ratios) == 3 and all(r > 0 for r in ratios) and abs(sum(ratios) - 1) < 1e-6
    require(sound, "ratios", list(ratios), "must be three numbers above 0 that sum to 1: train, val, test")


def split_classes(
    names: Sequence[str],
    given: Mapping[str, Split | None],
    settings: SplitSettings,
    noun: str = "class",
    complete: bool = True,
    benchmark: str | None = None,
) -> tuple[str, dict[Split, Index]]:
    """Return the name of the split, and the indices of the classes of each part. Raise if the split is to be
    `complete` and a part is empty.

    `names` are all classes, `given` the split of each in the layout. `noun` is what messages call them.
    """
    kind = settings.split if settings.split != "auto" else choose_split(names, given, benchmark)
    members = _members(kind, names, given, settings)
    index = {name: i for i, name in enumerate(names)}
    for one, other in combinations(SPLITS, 2):
        both = sorted({*members[one]} & {*members[other]})
        if both:
            overlap = f"{noun} {both[0]} is in both {one} and {other}; a {noun} belongs to one split"
            raise UserError(f"data.split={kind}: {overlap}")
    missing = [n for s in SPLITS for n in members[s] if n not in index]  # other classes may exist
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"data.split={kind}: lists {noun} {missing[0]}{more} without any {'image' if noun == 'class' else 'row'}"
        )
    parts = {s: np.array(sorted({index[n] for n in members[s]}), dtype=np.intp) for s in SPLITS}
    for split, classes in parts.items():
        plural = "classes" if noun == "class" else noun + "s"
        nothing = f"leaves no {noun} for {split} ({len(names)} {plural} in all)"
        require(len(classes) > 0 or not complete, "split", settings.split, nothing)
    for name, published in PUBLISHED.items():
        if all(set(members[s]) == set(published[s]) for s in SPLITS):
            return name, parts  # wherever the split came from
    return kind if kind in SPLIT_NAMES else Path(kind).name, parts


def limit_training_classes(splits: dict[Split, Index], count: int | None, seed: int) -> dict[Split, Index]:
    """The same splits with only the first `count` training classes of a seeded order; None: all. A larger count
    includes the classes of a smaller one."""
    if count is None or not len(splits["train"]):  # there are none where data are for a test alone
        return splits
    classes = splits["train"]
    needed = f"must be 1 to {len(classes)}, the training classes, or null for all"
    require(1 <= count <= len(classes), "train_classes", count, needed)
    order = choose(random_bits("train", seed, 1, range(1), len(classes))[0], len(classes))
    return splits | {"train": np.sort(classes[order[:count]])}


def choose_split(names: Sequence[str], given: Mapping[str, Split | None], benchmark: str | None = None) -> str:
    """The split that `auto` stands for."""
    if all(given.values()):
        return "given"
    split = BENCHMARKS[benchmark or "miniimagenet"].split
    return split if set(names) == {n for part in PUBLISHED[split].values() for n in part} else "ratio"


def _members(kind: str, names: Sequence[str], given: Mapping[str, Split | None], settings: SplitSettings) -> Members:
    if kind == "given":
        others = f"choices: ratio, {', '.join(PUBLISHED)}, all, PATH"
        require(all(given.values()), "split", "given", f"these files have no split; {others}")
        return {s: [n for n in names if given[n] == s] for s in SPLITS}
    if kind in PUBLISHED:
        return PUBLISHED[kind]
    if kind == "all":
        return {"train": [], "val": [], "test": names}
    if kind == "ratio":
        names = sorted(names)
        order = choose(random_bits("train", settings.split_seed, 0, range(1), len(names))[0], len(names))
        cuts = np.rint(np.cumsum((settings.ratios or RATIOS)[:2]) * len(names)).astype(int)
        if settings.ratios is None:
            least = min(FEWEST, len(names) // 3)
            cuts = np.minimum(cuts, [len(names) - 2 * least, len(names) - least])
        if len(names) >= 3:  # one for each part at least
            cuts = np.clip(cuts, [1, 2], [len(names) - 2, len(names) - 1])
            cuts[1] = max(cuts[1], cuts[0] + 1)
        return {s: [names[i] for i in part] for s, part in zip(SPLITS, np.split(order, cuts), strict=True)}
    path = expand_path(kind)
    try:
        if path.is_dir():
            lines = {s: (path / f"{s}.txt").read_text(encoding="utf-8-sig").splitlines() for s in SPLITS}
            return {s: [line.strip() for line in part if line.strip()] for s, part in lines.items()}
        stored = json.loads(path.read_text(encoding="utf-8-sig"))
        return {s: [str(name) for name in stored[s]] for s in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = f"must be a split.json or a folder with train.txt, val.txt, test.txt ({one_line(error)})"
        raise SettingError("split", path, expected) from error


def _exists(path: str) -> bool:
    try:
        return bool(path) and expand_path(path).exists()
    except OSError:  # too long for a name
        return False
