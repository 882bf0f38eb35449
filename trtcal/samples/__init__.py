"""Samples: from a path, a script or arrays, and options, to batches that a model can be fed."""
