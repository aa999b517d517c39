"""Tutorials: pages of docs/tutorials whose Python blocks are the cells of a notebook. The site runs them (pages.py).

`python docs/notebooks.py FOLDER` writes the notebooks, without outputs.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGES = sorted((Path(__file__).resolve().parent / "tutorials").glob("*.md"))
CELL = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^]]+)\]\((?:\.\./)*([^)\s#]+)[^)\s]*\)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal


def make_notebook(page: Path) -> dict[str, Any]:
    """The notebook of a page, as JSON of nbformat 4. It may lie anywhere, so it names other pages in place of links."""
    cells = []
    for i, part in enumerate(CELL.split(page.read_text(encoding="utf-8"))):
        code = i % 2 == 1
        source = part.strip() if code else LINK.sub(r"\1 (\2)", part.strip())
        cell = {"id": f"cell-{i}", "cell_type": "code" if code else "markdown", "metadata": {}, "source": source}
        cells += [cell | ({"outputs": [], "execution_count": None} if code else {})] if source else []
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def run_notebook(notebook: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with its outputs, run in a folder by one thread; paths in outputs are relative to the folder. Raise
    `nbclient.exceptions.CellExecutionError` where a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # `!metarun` of this environment
    variables = {"OMP_NUM_THREADS": "1"} | os.environ | {"PATH": programs, "METARUN_CACHE": str(folder / ".cache")}
    options = {"kernel_name": "python3", "startup_timeout": 300, "extra_arguments": ["--log-level=ERROR"]}
    where = {"metadata": {"path": str(folder)}}
    made = NotebookClient(nbformat.from_dict(notebook), resources=where, **options).execute(env=variables)
    return json.loads(json.dumps(made).replace(f"{folder}/", ""))


def render(outputs: Sequence[Mapping[str, Any]], figures: str) -> tuple[str, dict[str, bytes]]:
    """The outputs of a cell as Markdown, and its figures by their names, which begin with `figures`."""
    text, images, shown = "", {}, []
    for output in outputs:
        data = output.get("data", {})
        page = data.get("text/html", "")
        if "image/png" in data:
            name = f"{figures}{len(images)}.png"
            images[name] = base64.b64decode(data["image/png"])
            shown.append(f"![figure drawn by the code above]({name})")
        elif page and not page.startswith("<pre"):
            shown.append(f'<div class="output">{page}</div>')
        else:
            text += output.get("text") or data["text/plain"]
    plain = COLOUR.sub("", text).strip("\n")
    printed = [f'<pre class="output">{html.escape(plain)}</pre>'] if plain else []
    return "\n\n".join(["", *printed, *shown]), images


def add_outputs(markdown: str, outputs: Sequence[str]) -> str:
    """The page with the outputs of each cell below it."""
    below = iter(outputs)
    return CELL.sub(lambda cell: f"```ipython3\n{cell[1]}```\n{next(below)}", markdown)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        text = json.dumps(make_notebook(page), indent=1, ensure_ascii=False)
        (target / f"{page.stem}.ipynb").write_text(text + "\n", encoding="utf-8")
