"""Intervals, variance components, paired differences, convergence: NumPy alone. May import config and below."""
