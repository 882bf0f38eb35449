"""The calibration cache: TensorRT's own text, every other format of ranges, repairs, and what a cache was made from."""
