"""job=profile: where a training step's time and memory go."""
