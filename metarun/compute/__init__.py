"""Where and how the arithmetic runs: devices, processes, the task axis, linear algebra. May import report and below."""
