"""job=data: decode a data set into the cache, verify it, and describe its contents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from metarun.config.schema import Config, to_dict
from metarun.errors import UserError
from metarun.jobs.result import Result
from metarun.jobs.terminal import show, small_table
from metarun.storage.run_folder import RunFolder
from metarun.storage.text import count_nouns
from metarun.training.experiment import build_dataset, episode_sizes, option_name
from metarun.types import DatasetOptions, optional


def data_job(config: Config, record: RunFolder) -> Result:
    """Write dataset.json, split.json and contact.png (a few training episodes) into the run folder."""
    dataset: Any = build_dataset(config)
    name = option_name("data", config)
    describe = optional(dataset, DatasetOptions, "describe")
    if describe is None:
        raise UserError(f"job=data: data={name} is generated while training, there are no files to prepare")
    facts = describe()
    record.create(to_dict(config))
    spec, _ = episode_sizes(config)
    record.write_json("split.json", dataset.members)
    record.write_json("dataset.json", facts)
    dataset.contact_sheet(spec).save(record.path / "contact.png")
    show(*render(name, facts, record.path))
    return Result("completed", facts, record.path)


def render(name: str, facts: dict[str, Any], folder: Path) -> Iterator[str | Table]:
    """What the terminal shows."""
    layout = f", layout: {facts['layout']}" if "layout" in facts else ""
    yield f"data set: {name}{layout}, split {facts['split']} ({facts['split_sha256'][:12]})"
    if facts.get("caveat"):
        yield f"note: {facts['caveat']}"
    table = small_table("", "classes", "images", "images a class")
    for split, part in facts["parts"].items():
        fewest, most = part["fewest"], part["most"]
        each = str(fewest) if fewest == most else f"{fewest} to {most}"
        table.add_row(split, str(part["classes"]), str(part["images"]), each)
    yield table
    yield f"images: {facts['images_are']}; {count_nouns(facts.get('skipped', 0), 'unreadable file')} skipped"
    yield f"cache: {facts['cache']}, {facts['cache_mb']:.1f} MB, verified"
    yield f"contact sheet of training episodes: {folder / 'contact.png'}"
