"""Run folders as they are found, without trust, and the facts in them."""
