"""Few-shot classification of short waves, with metarun."""
