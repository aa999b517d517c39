"""Meta-learning algorithms, one file each, and what they share. May import models and the rooms below it."""
