"""One run of the samples through a model, which leaves the statistics of its tensors."""
