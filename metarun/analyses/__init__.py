"""Questions about a trained run, or about training itself: each a class with its settings, one file and one YAML."""
