"""Draw the rooms of metarun, their imports and the way of one training run: python docs/architecture.py

Measures the imports of the source itself, draws docs/img/architecture.png, and renews the table of docs/architecture.md
between its markers.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "metarun"
ROOMS = (
    *("testing", "cli", "jobs", "analyses", "training", "diagnostics", "regularizers", "algorithms"),
    *("models", "data", "compute", "report", "config", "storage"),
)
WAY = (
    ("cli/main.py", "compose the settings"),
    ("jobs/train.py", "open the run folder, train, test"),
    ("training/loop.py", "outer steps: sample, differentiate, check, update, log, validate"),
    ("training/meta_gradient.py", "mean over tasks, vmap, ranks"),
    ("algorithms/maml.py", "the formula, for one task"),
)
"""The files that a training run goes through, from the command to the formula."""

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
MARKERS = "<!-- rooms: made by docs/architecture.py -->", "<!-- end of rooms -->"


def imports_by_room() -> Counter[tuple[str, str]]:
    """How many modules of one room import modules of another."""
    found: set[tuple[Path, str, str]] = set()
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("metarun."):
                other = node.module.split(".")[1]
                if room in ROOMS and other in ROOMS and other != room:
                    found.add((path, room, other))
    return Counter((room, other) for _, room, other in found)


def size_of(room: str) -> tuple[int, int]:
    """Files and lines of a room."""
    files = list((PACKAGE / room).rglob("*.py"))
    return len(files), sum(path.read_text(encoding="utf-8").count("\n") for path in files)


def table() -> str:
    """A row a room: its name, what its docstring says, files and lines."""
    rows = ["| room | what is there | files | lines |", "|---|---|---|---|"]
    for room in ROOMS:
        docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        purpose = " ".join(docstring.split("\n\n")[0].split()).partition(" May import")[0]
        files, lines = size_of(room)
        rows.append(f"| `{room}/` | {purpose} | {files} | {lines} |")
    return "\n".join(rows)


def draw(axes: Axes, imports: Counter[tuple[str, str]]) -> None:
    """Rooms from top to bottom; arcs on the left are imports, as wide as many; on the right, one run's way."""
    heights = {room: -float(i) for i, room in enumerate(ROOMS)}
    for (room, other), count in imports.items():
        start, end = (-1.02, heights[room]), (-1.02, heights[other])
        bend = 0.16 + 0.3 * (heights[room] - heights[other]) / len(ROOMS)
        style = f"arc3,rad={bend:.2f}"
        width = 0.5 + 0.17 * count
        arrow = FancyArrowPatch(
            start, end, connectionstyle=style, arrowstyle="-|>", mutation_scale=7, lw=width, color=GREY, alpha=0.55
        )
        axes.add_patch(arrow)
    for room, y in heights.items():
        axes.add_patch(FancyBboxPatch((-1, y - 0.32), 2, 0.64, boxstyle="round,pad=0.02", fc="white", ec=BLUE, lw=1.2))
        files, lines = size_of(room)
        axes.text(-0.93, y, room, va="center", fontsize=9.5, color="black", weight="bold")
        axes.text(0.95, y, f"{files} files, {lines} lines", va="center", ha="right", fontsize=6.5, color="#555555")
    aside = {"training/loop.py": 0.17, "training/meta_gradient.py": -0.27}  # two stops in one room
    stops = [(1.25, heights[path.partition("/")[0]] + aside.get(path, 0.0)) for path, _ in WAY]
    for n, ((x, y), (path, note)) in enumerate(zip(stops, WAY, strict=True)):
        axes.plot(x, y, "o", color=ORANGE, ms=11, zorder=3)
        axes.text(x, y, str(n + 1), color="white", ha="center", va="center", fontsize=7, weight="bold", zorder=4)
        axes.text(x + 0.12, y, f"{path}   {note}", va="center", fontsize=8)
        if n:
            arrow = FancyArrowPatch(stops[n - 1], (x, y), arrowstyle="-", lw=1.4, color=ORANGE, zorder=2)
            axes.add_patch(arrow)
    axes.set(xlim=(-3.1, 4.6), ylim=(-len(ROOMS) + 0.3, 0.7))
    axes.axis("off")


def main() -> None:
    figure, axes = plt.subplots(figsize=(10, 7))
    draw(axes, imports_by_room())
    figure.savefig(ROOT / "docs/img/architecture.png", dpi=130, bbox_inches="tight")
    page = ROOT / "docs/architecture.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    page.write_text(f"{before}{MARKERS[0]}\n{table()}\n{MARKERS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
