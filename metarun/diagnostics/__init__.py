"""Convergence and stability measures: pure functions of what training has computed anyway."""
