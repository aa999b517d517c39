"""The HTML page: the card of a run, the sections of one run or of several, the template."""
