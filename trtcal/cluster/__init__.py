"""The same work as tasks on a Ray cluster."""
