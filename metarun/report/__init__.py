"""The report of a run, and the comparison of several: one page, or tables and figures for a paper.

read, files     run folders as they are found          groups, results   seeds together, differences, equal compute
facts, card     what a run is, reached and cost        table, tables     cells to read; Markdown, csv, LaTeX
drawing, lines  how figures look                       charts, measures, versus, points   the figures
sections, convergence, compare, page                   what stands on the page
"""

from __future__ import annotations

from metarun.report.write import FORMATS, write_report

__all__ = ["FORMATS", "write_report"]
