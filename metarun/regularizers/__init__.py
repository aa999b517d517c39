"""Penalties, one file each, and how settings become them. May import algorithms and the rooms below it."""
