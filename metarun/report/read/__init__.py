"""Run folders, read without trust, and the facts and jobs in them."""
