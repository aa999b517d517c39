"""A table of text, and how it is written for a README, a spreadsheet, a paper or a terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from metarun.errors import one_line

LEAST = 6  # letters that a column of words keeps where a line is too long
GAP = 2  # blanks between columns

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$",
    "…": r"\ldots{}",
}


@dataclass(frozen=True)
class Table:
    """Cells are text; columns named in `left` hold words, the others numbers. `strong` cells are set in bold."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: tuple[int, ...] = (0,)
    strong: frozenset[tuple[int, int]] = frozenset()  # (row, column)
    folded: bool = False  # on a page: opened by its title


def to_markdown(table: Table) -> str:
    """A table of GitHub's Markdown under its title."""
    rule = [":--" if at in table.left else "--:" for at in range(len(table.columns))]
    lines = [_markdown_row([_markdown(c) for c in table.columns]), _markdown_row(rule)]
    for at, row in enumerate(table.rows):
        cells = [_markdown(cell) for cell in row]
        lines.append(_markdown_row([f"**{c}**" if (at, k) in table.strong else c for k, c in enumerate(cells)]))
    note = f"\n{_markdown(table.note)}\n" if table.note else ""
    return f"### {_markdown(table.title)}\n\n" + "\n".join(lines) + f"\n{note}"


def printable(text: str) -> str:
    """On one line, control characters as code writes them: a terminal obeys them."""
    return one_line(text) if text.strip() else ""


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(text: str) -> str:
    """On one line, with nothing that a Markdown reader takes for a mark or for HTML."""
    text = printable(text).replace("\\", "\\\\")
    for sign in "|*_`[]":
        text = text.replace(sign, "\\" + sign)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(no_formula, table.columns))
    writer.writerows(map(no_formula, row) for row in table.rows)
    return buffer.getvalue()


def no_formula(cell: str) -> str:
    """A text that a spreadsheet does not take for a formula: only numbers may begin with a sign."""
    cell = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in cell)
    if not cell.lstrip().startswith(("=", "+", "-", "@")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def to_latex(table: Table, label: str) -> str:
    """A table float with booktabs' rules."""
    columns = "".join("l" if at in table.left else "r" for at in range(len(table.columns)))
    head = " & ".join(latex(c) for c in table.columns) + r" \\"
    rows = [[_latex_cell(table, at, k, c) for k, c in enumerate(row)] for at, row in enumerate(table.rows)]
    body = [" & ".join(row) + r" \\" for row in rows]
    caption = latex(f"{table.title}. {table.note}".strip())
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"  \centering",
            f"  \\caption{{{caption}}}",
            f"  \\label{{tab:{label}}}",
            f"  \\begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            f"    {head}",
            r"    \midrule",
            *[f"    {line}" for line in body],
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_cell(table: Table, row: int, column: int, text: str) -> str:
    return f"\\textbf{{{latex(text)}}}" if (row, column) in table.strong else latex(text)


def to_text(table: Table, width: int) -> list[str]:
    """Lines of at most `width` signs, under a rule. Where they would be longer, words lose their ends and headings
    their beginnings, the widest first; numbers are never cut, and may make a line longer."""
    columns = list(enumerate(zip(table.columns, *table.rows, strict=True)))
    widths = [max(map(len, cells)) for _, cells in columns]
    least = [LEAST if at in table.left else max([LEAST, *map(len, cells[1:])]) for at, cells in columns]
    while sum(widths) + GAP * (len(widths) - 1) > width:
        loose = [at for at, own in enumerate(widths) if own > least[at]]
        if not loose:
            break
        widths[max(loose, key=lambda at: widths[at])] -= 1
    head = [
        c if len(c) <= most else "…" + c[len(c) - most + 1 :] for c, most in zip(table.columns, widths, strict=True)
    ]
    rule = "─" * (sum(widths) + GAP * (len(widths) - 1))
    return [_text_row(table, head, widths), rule, *(_text_row(table, row, widths) for row in table.rows)]


def _text_row(table: Table, row: Sequence[str], widths: list[int]) -> str:
    cut = [cell if len(cell) <= most else cell[: most - 1] + "…" for cell, most in zip(row, widths, strict=True)]
    cells = [c.ljust(n) if at in table.left else c.rjust(n) for at, (c, n) in enumerate(zip(cut, widths, strict=True))]
    return (" " * GAP).join(cells).rstrip()


def latex(text: str) -> str:
    """Text as LaTeX's text mode shows it, the sign of a negative number as a minus."""
    escaped = "".join(LATEX.get(sign, sign) for sign in printable(text))
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)
