"""Data sets: episodes as a pure function of (seed, split, step, task index). May import compute and below."""
