"""What the measured numbers answer, in sentences: of one run, and of several. A missing fact gives no sentence."""
