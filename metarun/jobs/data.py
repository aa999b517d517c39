"""job=data: decode a data set into the cache, verify it, and describe its contents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from metarun.config.schema import Config, to_dict
from metarun.errors import SettingError, UserError
from metarun.jobs.result import Result
from metarun.jobs.terminal import show, small_table
from metarun.storage.run_folder import RunFolder
from metarun.storage.text import count_nouns, number
from metarun.training.episode_size import episode_sizes, fill_ways
from metarun.training.experiment import NO_PARTS, OwnParts, build_dataset, option_name
from metarun.types import DatasetOptions, optional

COLUMNS_SHOWN = 20
NOUNS = {"classes": ("class", "classes"), "tasks": ("task", "tasks")}


def data_job(config: Config, record: RunFolder, own: OwnParts = NO_PARTS) -> Result:
    """Write dataset.json, split.json and, of images, contact.png (a few training episodes) into the run folder."""
    dataset: Any = build_dataset(config) if own.dataset is None else own.dataset
    config = fill_ways(config, dataset)
    name = option_name("data", config)
    describe = optional(dataset, DatasetOptions, "describe")
    if describe is None:
        raise UserError(f"job=data: data={name} is generated while training, there are no files to prepare")
    draw, (spec, _) = optional(dataset, DatasetOptions, "contact_sheet"), episode_sizes(config)
    try:
        facts = describe()
        sheet = draw(spec) if draw else None
    except SettingError as error:
        raise error.under("data") from error
    record.create(to_dict(config))
    record.write_json("split.json", dataset.members)
    record.write_json("dataset.json", facts)
    if sheet:
        sheet.save(record.path / "contact.png")
    for of_set, found in facts["sets"].items() if "sets" in facts else [(name, facts)]:  # of a mixture, each
        show(*render(of_set, found))
    if sheet:
        show(f"contact sheet of training episodes: {record.path / 'contact.png'}")
    return Result("completed", facts, record.path)


def render_columns(facts: dict[str, Any]) -> Iterator[str | Table]:
    """The inputs and targets of rows, with the numbers of the training rows in units of the data."""
    table = small_table("training rows", "", "mean", "deviation", "lowest", "highest")
    for column in facts["columns"][:COLUMNS_SHOWN]:
        numbers = (number(column[key]) for key in ("mean", "deviation", "low", "high"))
        table.add_row(column["name"], column["role"], *numbers)
    yield table
    more = len(facts["columns"]) - COLUMNS_SHOWN
    if more > 0:
        yield f"and {count_nouns(more, 'further column')} (dataset.json)"
    for key in ("inputs_are", "targets_are"):
        if key in facts:
            yield f"{key.partition('_')[0]}: {facts[key]}"
    window = facts.get("window")
    if window:
        ahead = f", {window['horizon']} ahead to forecast" if "horizon" in window else ""
        sharing = "may" if window["overlap"] else "do not"
        cut = f"windows of {window['length']} readings every {window['stride']}{ahead}"
        yield f"{facts['recordings']} recordings, {cut}; those of an episode {sharing} overlap"
    for groups in ("classes", "tasks"):
        if facts.get(f"{groups}_left_out"):
            yield f"data.min_rows left out {count_nouns(facts[f'{groups}_left_out'], *NOUNS[groups])}"


def render(name: str, facts: dict[str, Any]) -> Iterator[str | Table]:
    """What the terminal shows."""
    layout = f", layout: {facts['layout']} ({facts['form']})" if "layout" in facts else ""
    yield f"data set: {name}{layout}, split {facts['split']} ({facts['split_sha256'][:12]})"
    if facts.get("passed_over"):
        first = ", ".join(facts["passed_over_first"])
        yield f"passed over: {count_nouns(facts['passed_over'], 'image')} that no class has, as {first}"
    if facts.get("other_files"):
        endings = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in facts["other_files"].items())
        yield f"passed over: files that are no images: {endings}"
    if facts.get("caveat"):
        yield f"note: {facts['caveat']}"
    groups, rows = list(facts["parts"]["train"])[:2]  # classes and images, tasks and rows
    table = small_table("", groups, rows, f"{rows} a {'class' if groups == 'classes' else groups[:-1]}")
    for split, part in facts["parts"].items():
        fewest, most = part["fewest"], part["most"]
        each = str(fewest) if fewest == most else f"{fewest} to {most}"
        table.add_row(split, str(part[groups]), str(part[rows]), each)
    yield table
    if facts.get("within"):
        yield f"all classes of a task have the same {facts['within']} (data.within)"
    if "columns" in facts:
        yield from render_columns(facts)
        return
    yield f"images: {facts['images_are']}; {count_nouns(facts.get('skipped', 0), 'unreadable file')} skipped"
    if "depth" in facts:
        bits = f"{facts['depth']} bits, by their largest value {facts['largest']} (data.depth sets it)"
        yield f"files of 16 bits: read as {bits}"
    v = facts["values"]
    spread = f"{v['min']:.3f} to {v['max']:.3f}, mean {v['mean']:.3f}, deviation {v['deviation']:.3f}"
    yield f"values, before data.normalize: {spread}"
    if facts.get("flat"):
        first = ", ".join(facts["flat_first"])
        yield f"warning: {count_nouns(facts['flat'], 'image')} of one colour, as {first}"
    yield f"cache: {facts['cache']}, {facts['cache_mb']:.1f} MB, verified"
