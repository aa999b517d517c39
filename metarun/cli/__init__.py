"""What users type: the console scripts, and the only code that imports hydra. May import every room."""
