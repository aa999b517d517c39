"""Several runs together: groups of seeds, intervals, paired differences, swept settings. Numbers only."""
