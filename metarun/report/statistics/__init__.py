"""Intervals, variance components, paired differences, convergence: NumPy alone."""
