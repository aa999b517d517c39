"""Settings, and the components that they name. May import storage."""
