"""Figures of one run, of several, and of a sweep. All but `panels` import matplotlib."""
