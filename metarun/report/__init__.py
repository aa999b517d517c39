"""The report of a run, and the comparison of several: pages, tables, figures. May import statistics and below.

read, files              run folders as they are found
facts, card              what a run is, what it reached and what it cost
groups, results, several seeds together, their intervals, paired differences, equal compute
jobs, axes, combinations, swept   a sweep: how its jobs ended, what was swept, what each combination reached
text, table, tables      numbers as they are read; tables as cells, Markdown, csv and LaTeX (texts)
drawing, lines, names    how figures look, and what panels are called
charts, measures         figures of one run; versus, points: of several; swept_figures, parallel, shade: of a sweep
sections, convergence, penalties   what stands on the page of one run; compare: of several; page, write: the file
"""

from __future__ import annotations

from metarun.report.write import FORMATS, write_report

__all__ = ["FORMATS", "write_report"]
