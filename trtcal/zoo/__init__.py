"""Many models in one run."""
