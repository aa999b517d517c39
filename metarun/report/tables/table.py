"""A table of text, written for a README, a spreadsheet, a paper or a terminal."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

from metarun.errors import one_line
from metarun.storage.text import escape_formula

MIN_WIDTH = 6  # characters that a column of words keeps if a line is too long
GAP = 2  # blanks between columns

MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\|*_`[]"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "…": r"\ldots{}", "±": r"$\pm$", "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
})  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Cells of text; the columns in `left` hold words, the others numbers; the `strong` cells are bold."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: tuple[int, ...] = (0,)
    strong: frozenset[tuple[int, int]] = frozenset()  # (row, column)
    folded: bool = False  # on a page: opens with a click on its title


def to_markdown(table: Table) -> str:
    """Return a table of GitHub's Markdown under its title."""
    rule = [":--" if at in table.left else "--:" for at in range(len(table.columns))]
    lines = [[escape_markdown(c) for c in table.columns], rule]
    for at, row in enumerate(table.rows):
        cells = [escape_markdown(cell) for cell in row]
        lines.append([f"**{c}**" if (at, k) in table.strong else c for k, c in enumerate(cells)])
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    note = f"\n{escape_markdown(table.note)}\n" if table.note else ""
    return f"### {escape_markdown(table.title)}\n\n{rows}\n{note}"


def _one_line(text: str) -> str:
    """`text` on one line, its control characters escaped: a terminal obeys them."""
    return one_line(text) if text.strip() else ""


def escape_markdown(text: str) -> str:
    """`text` on one line, without Markdown's marks and HTML."""
    return _one_line(text).translate(MARKDOWN)


def to_csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(escape_formula, table.columns))
    writer.writerows(map(escape_formula, row) for row in table.rows)
    return buffer.getvalue()


def to_latex(table: Table, label: str) -> str:
    """Return a table float with the rules of booktabs."""
    alignment = "".join("l" if at in table.left else "r" for at in range(len(table.columns)))
    rows = [[escape_latex(c) for c in row] for row in table.rows]
    for at, column in table.strong:
        rows[at][column] = f"\\textbf{{{rows[at][column]}}}"
    lines = [
        r"\begin{table}[t]",
        r"  \centering",
        f"  \\caption{{{escape_latex(f'{table.title}. {table.note}'.strip())}}}",
        f"  \\label{{tab:{label}}}",
        f"  \\begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        f"    {' & '.join(map(escape_latex, table.columns))} \\\\",
        r"    \midrule",
        *[f"    {' & '.join(row)} \\\\" for row in rows],
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def escape_latex(text: str) -> str:
    """Return `text` for LaTeX's text mode, the sign of a negative number as a minus."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", _one_line(text).translate(LATEX))


def to_text(table: Table, width: int) -> list[str]:
    """Return lines of at most `width` characters, with a rule below the headings.

    Longer lines are cut, the widest column first: words lose their ends, headings their beginnings. Numbers are never
    cut, and may make a line longer.
    """
    columns = list(enumerate(zip(table.columns, *table.rows, strict=True)))
    widths = [max(map(len, cells)) for _, cells in columns]
    least = [MIN_WIDTH if at in table.left else max([MIN_WIDTH, *map(len, cells[1:])]) for at, cells in columns]
    while sum(widths) + GAP * (len(widths) - 1) > width:
        loose = [at for at, own in enumerate(widths) if own > least[at]]
        if not loose:
            break
        widths[max(loose, key=lambda at: widths[at])] -= 1
    head = [c if len(c) <= n else "…" + c[len(c) - n + 1 :] for c, n in zip(table.columns, widths, strict=True)]
    lines = []
    for row in (head, *table.rows):
        cells = [cell if len(cell) <= n else cell[: n - 1] + "…" for cell, n in zip(row, widths, strict=True)]
        padded = [c.ljust(widths[k]) if k in table.left else c.rjust(widths[k]) for k, c in enumerate(cells)]
        lines.append((" " * GAP).join(padded).rstrip())
    rule = "─" * (sum(widths) + GAP * (len(widths) - 1))
    return [lines[0], rule, *lines[1:]]
