"""The tutorials: pages that are notebooks. `make docs` runs their cells, and so does `make test-long`."""

from __future__ import annotations

import ast
import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = runpy.run_path(str(ROOT / "docs/notebooks.py"))
MISSING = [name for name in ("nbclient", "ipykernel") if importlib.util.find_spec(name) is None]
each_page = pytest.mark.parametrize("page", NOTEBOOKS["PAGES"], ids=lambda page: page.stem)


def code_cells(notebook: dict[str, Any]) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@each_page
def test_every_cell_is_code_and_no_link_leads_out_of_the_notebook(page: Path) -> None:
    notebook = NOTEBOOKS["make_notebook"](page)
    assert len(code_cells(notebook)) == page.read_text(encoding="utf-8").count("```python\n")
    for cell in code_cells(notebook):
        if not cell["source"].startswith(("!", "%%writefile")):
            ast.parse(cell["source"])
    assert "](" not in "".join(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def test_outputs_stand_below_their_cells() -> None:
    table = {"data": {"text/html": "<table></table>", "text/plain": "a table"}}
    line = {"data": {"text/html": "<pre style=''>a &lt; b</pre>", "text/plain": "\x1b[1ma < b\x1b[0m\n"}}
    figure = {"data": {"image/png": "AAAA", "text/plain": "<Figure>"}}
    text, images = NOTEBOOKS["render"]([{"text": "printed\n"}, line, table, figure], "page-0-")
    shown = ['<pre class="output">printed\na &lt; b</pre>', '<div class="output"><table></table></div>']
    assert text.split("\n\n") == ["", *shown, "![figure drawn by the code above](page-0-0.png)"]
    assert images == {"page-0-0.png": b"\0\0\0"}
    page = NOTEBOOKS["add_outputs"]("A\n\n```python\n1\n```\n\nB\n\n```python\n2\n```\n", ["\n\none", "\n\ntwo"])
    assert page == "A\n\n```ipython3\n1\n```\n\n\none\n\nB\n\n```ipython3\n2\n```\n\n\ntwo\n"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}: pip install 'metarun[docs]'")
@each_page
def test_the_cells_run(page: Path, tmp_path: Path) -> None:
    made = NOTEBOOKS["run_notebook"](NOTEBOOKS["make_notebook"](page), tmp_path)
    assert all(cell["execution_count"] for cell in code_cells(made))
