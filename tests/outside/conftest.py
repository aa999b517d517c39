"""The package here is a stranger's: its own tests run in a process of their own, once it is installed."""

collect_ignore = ["chirps"]
