"""All that is on disk, and which process writes it. May import no other room."""
