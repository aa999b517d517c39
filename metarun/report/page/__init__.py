"""The HTML page: the card of a run, the sections, the template."""
