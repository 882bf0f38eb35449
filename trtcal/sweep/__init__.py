"""The batch-size sweep: what every batch size, order and method would have given, and which to take."""
