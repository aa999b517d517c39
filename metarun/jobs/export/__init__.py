"""job=export: a run as weights and a program that need no metarun."""
