"""Figures of one run, of several, and of a sweep; the only folder of the report that imports matplotlib."""
