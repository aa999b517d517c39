"""Statistics of runs and of test tasks: intervals, variance components, paired differences, convergence. NumPy only."""
