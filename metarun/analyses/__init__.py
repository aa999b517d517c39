"""Questions about a run: one class, one file and one YAML each. May import training and the rooms below it."""
