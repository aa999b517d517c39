"""The report of a run, and the comparison of several: pages, tables, figures. May import config and below.

`write.write_report` is the entrance. statistics/: intervals, rates, differences, by NumPy alone; read/: run folders;
compare/: several runs together; tables/ and figures/: what is made of them; verdict/: what they answer, in sentences;
page/: the HTML page. Each imports only from those before it.
"""
