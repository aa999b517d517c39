"""The outer loop, evaluation, checkpoints, and the objects of a run. May import diagnostics and the rooms below it."""
