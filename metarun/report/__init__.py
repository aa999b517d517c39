"""The report of a run, and the comparison of several: pages, tables, figures. May import statistics and below.

`write_report` is the entrance. read/: run folders; compare/: several runs together; tables/ and figures/: what is made
of them; verdict/: what they answer, in sentences; page/: the HTML page. Each imports only from those before it.
"""

from __future__ import annotations

from metarun.report.write import FORMATS, write_report

__all__ = ["FORMATS", "write_report"]
