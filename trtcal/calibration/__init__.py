"""From a model and samples to a calibration cache, in memory and in a file."""
