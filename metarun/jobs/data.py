"""job=data: decode a data set into the cache, verify it, and say what it holds."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from metarun.config.schema import Config
from metarun.errors import UserError
from metarun.jobs.result import Result
from metarun.storage.run_folder import RunFolder
from metarun.training.experiment import build_dataset, episode_sizes, option_name


def data_job(config: Config, record: RunFolder) -> Result:
    """Leaves dataset.json, split.json and contact.png (a few training episodes) in the run folder."""
    dataset: Any = build_dataset(config)
    name = option_name("data", config)
    if not hasattr(dataset, "describe"):
        raise UserError(f"job=data: data={name} is generated while training, there are no files to prepare")
    described = dataset.describe()
    record.create(dataclasses.asdict(config))
    spec, _ = episode_sizes(config)
    record.write_json("split.json", dataset.members)
    record.write_json("dataset.json", described)
    dataset.contact_sheet(spec).save(record.path / "contact.png")
    show(name, described, Console(), record)
    return Result("completed", described, record.path)


def show(name: str, described: dict[str, Any], console: Console, record: RunFolder) -> None:
    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    layout = f", laid out as {described['layout']}" if "layout" in described else ""
    say(f"data set: {name}{layout}, split {described['split']} ({described['split_sha256'][:12]})")
    if described.get("caveat"):
        say(f"note: {described['caveat']}")
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for column in ("", "classes", "images", "images a class"):
        table.add_column(column, justify="right" if column else "left")
    for split, part in described["parts"].items():
        fewest, most = part["fewest"], part["most"]
        each = str(fewest) if fewest == most else f"{fewest} to {most}"
        table.add_row(split, str(part["classes"]), str(part["images"]), each)
    console.print(table)
    say(f"images: {described['images_are']}; {described.get('skipped', 0)} files skipped as unreadable")
    say(f"cache: {described['cache']}, {described['cache_mb']:.1f} MB, verified")
    say(f"contact sheet of training episodes: {record.path / 'contact.png'}")
