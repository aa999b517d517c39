"""Keep a trained run in docs/checkpoints, small enough for a repository: python -m benchmarks.ship ROW [SEED [OUTPUTS]]

Of OUTPUTS/ROW/seedSEED (outputs/reproduce, seed 0): its settings, summary, split, scores and run card, and the tested
weights without the optimizer's state. `metarun job=evaluate run=docs/checkpoints/ROW` tests them again.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import DOCS, RECORDS, load
from metarun.report.page.card import build_card
from metarun.report.read.runs import read_run
from metarun.report.tables.table import Table, to_markdown
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint

KEPT = DOCS / "checkpoints"
MOST_BYTES = 1_000_000


def ship(source: RunFolder, folder: Path, command: str) -> None:
    target = RunFolder(folder)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    settings = (source.path / "config.yaml").read_text()
    # A run that was continued names its own folder, on a machine that is not the reader's.
    (folder / "config.yaml").write_text(re.sub(r"^(resume|run): .*$", r"\1: null", settings, flags=re.MULTILINE))
    for name in ("split.json", "test.json"):  # without scores it would be a run that can be continued
        if (source.path / name).exists():
            shutil.copy(source.path / name, folder / name)
    summary = source.read_summary() | {"run_dir": folder.name}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    checkpoint.save_without_optimizer(target.best, checkpoint.best_of(source))
    (folder / "README.md").write_text(described(folder, command))
    size = target.best.stat().st_size
    print(f"{folder}: {size / 1e6:.2f} MB" + ("" if size <= MOST_BYTES else ", more than the megabyte that is kept"))


def described(folder: Path, command: str) -> str:
    """The run card."""
    known = build_card(read_run(folder))
    facts = [(f.name, f.value, f.note) for f in known.facts if f.name != "folder"]
    table = to_markdown(Table("Run card", ("", "", ""), tuple(facts), left=(0, 1, 2)))
    tested = f"    metarun job=evaluate run=docs/checkpoints/{folder.name}\n"
    return f"# {known.title}\n\n{known.result}: {known.reading}\n\n    {command}\n{tested}\n{table}\n"


def index(kept: Path) -> str:
    """What is kept, by folder."""
    rows = []
    for place in sorted(p.parent for p in kept.glob("*/summary.json")):
        known = build_card(read_run(place))
        rows.append((f"[{place.name}]({place.name}/README.md)", known.result, known.reading))
    lines = ["| run | result | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(
        [
            "# Trained runs",
            "",
            "Settings, result and weights, without the optimizer's state. Each can be tested",
            "(`metarun job=evaluate run=docs/checkpoints/NAME`), predicted with, analysed and exported; none can be",
            "trained on. Made by `python -m benchmarks.ship`.",
            "",
            *lines,
            "",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    row, seed, outputs = [*arguments, *("0", "outputs/reproduce")[len(arguments) - 1 :]]
    typed = [r["command"] for r in load(RECORDS) if (r["row"], r["seed"]) == (row, int(seed))]
    if not typed:
        sys.exit(f"ship: {row}, seed {seed}: no such record in {RECORDS.name}; make reproduce ROW={row} makes one")
    source = RunFolder(Path(outputs) / row / f"seed{seed}")
    if not (source.path / "config.yaml").exists():
        sys.exit(f"ship: {source.path}: holds no run")
    ship(source, KEPT / row, typed[0])
    (KEPT / "README.md").write_text(index(KEPT))


if __name__ == "__main__":
    main(sys.argv[1:])
