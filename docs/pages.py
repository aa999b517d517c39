"""Hooks of mkdocs: pages outside of docs/ become pages of the site, and links between them hold there as on GitHub.

A link to any other file of the repository leads to a copy of it, in files/ of the site. Tutorials are run.
"""

from __future__ import annotations

import importlib
import json
import logging
import posixpath
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages outside of docs/ -> their place in the site."""

OUTPUTS: dict[str, list[str]] = {}
"""The outputs of the cells of each tutorial, as Markdown."""

REPORTS: dict[str, list[str]] = {}
"""The report pages that the runs of each tutorial leave, by the names of their folders."""

LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")  # of a file; an address has a colon
FENCED = re.compile(r"^```.*?^```$|^ {4}[^\n]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def make_anchor(heading: str, separator: str = "-") -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def find_links(text: str) -> list[tuple[str, str]]:
    """File and anchor of each link to a file, outside of code."""
    prose = FENCED.sub("", text)
    anchors = [("", anchor) for anchor in re.findall(r"\]\(#([^)\s]*)\)", prose)]
    return [(found[2], (found[3] or "").lstrip("#")) for found in LINK.finditer(prose)] + anchors


def on_config(config: Any) -> None:
    config.mdx_configs["toc"]["slugify"] = make_anchor


def on_files(files: Any, config: Any) -> None:
    from mkdocs.structure.files import File

    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page in [*files.documentation_pages()]:
        source = source_of(page.src_uri)
        for path, _ in find_links((ROOT / source).read_text(encoding="utf-8")):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
            copy = place(target) if path else ""
            if copy.startswith("files/") and copy not in files.src_uris:
                files.append(File.generated(config, copy, abs_src_path=str(ROOT / target)))

    for name, content in run_tutorials().items():
        files.append(File.generated(config, f"tutorials/{name}", content=content))


def run_tutorials() -> dict[str, bytes]:
    """Fill in OUTPUTS and REPORTS. Return notebooks, figures and reports, by their names in tutorials/ of the site."""
    notebooks = import_notebooks()
    made: dict[str, bytes] = {}
    for page in notebooks.PAGES:
        logging.getLogger("mkdocs.hooks").info(f"Running tutorials/{page.name}")
        with tempfile.TemporaryDirectory() as folder:
            notebook = notebooks.run_notebook(notebooks.make_notebook(page), Path(folder))
            reports = {path.parent.name: path.read_bytes() for path in sorted(Path(folder).glob("*/*/report.html"))}
        REPORTS[f"tutorials/{page.name}"] = [*reports]
        made |= {f"{page.stem}-{name}.html": content for name, content in reports.items()}
        made[f"{page.stem}.ipynb"] = json.dumps(notebook, indent=1).encode()
        OUTPUTS[f"tutorials/{page.name}"] = texts = []
        for i, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
            text, images = notebooks.render(cell["outputs"], f"{page.stem}-{i}-")
            texts.append(text)
            made |= images
    return made


def import_notebooks() -> Any:
    sys.path.insert(0, str(ROOT / "docs"))
    return importlib.import_module("notebooks")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source, here = source_of(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def lead_to_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        return f"{link[1]}{posixpath.relpath(place(target), here or '.')}{link[3] or ''}{link[4]}"

    parts = re.split(f"({FENCED.pattern})", markdown, flags=FENCED.flags)
    linked = "".join(part if i % 2 else LINK.sub(lead_to_site, part) for i, part in enumerate(parts))
    if cells := OUTPUTS.get(page.file.src_uri):
        download = f'<a href="{Path(source).stem}.ipynb" download>This page as a notebook</a>'
        linked = linked.replace("\n", f"\n\n{download}\n", 1)
        linked = import_notebooks().add_outputs(linked, cells)
        named = [f'<a href="{Path(source).stem}-{name}.html">{name}</a>' for name in REPORTS[page.file.src_uri]]
        linked += f"\n## Reports\n\nThe pages that the runs above left: {', '.join(named)}.\n" if named else ""
    return re.sub(r"(-->\n)(?=\S)", r"\1\n", linked)  # an empty line before a table


def source_of(page: str) -> str:
    """The file of the repository that a page of the site is made from."""
    return next((source for source, outside in OUTSIDE.items() if outside == page), f"docs/{page}")


def place(target: str) -> str:
    """Where a file of the repository is in the site; of a folder, its README.md."""
    if (ROOT / target).is_dir():
        target += "/README.md"
    return OUTSIDE.get(target) or (target[5:] if target.startswith("docs/") else f"files/{target}")
