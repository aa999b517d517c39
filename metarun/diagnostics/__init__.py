"""Measures of convergence and stability, and alarms: pure functions. May import regularizers and below."""
