"""Many runs from one command: each in a process of its own, none twice, none that takes the others along.

identity    which run a job is: its settings and the code
child       the process of a job
job         one job, from "is it done already?" to its number for the sweeper
overview    what a user sees while the sweep goes on
sitting     from the first job to the last lines and the exit code

metarun/storage/sweep_records.py has their records, which the report reads as well.
"""
