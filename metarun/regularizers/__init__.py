"""Penalties on the meta-parameters, usable with any algorithm."""
