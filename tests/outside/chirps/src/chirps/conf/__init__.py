"""Settings, as hydra.searchpath=[pkg://chirps.conf]."""
