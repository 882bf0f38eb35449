"""TensorRT's entropy calibration written out once more, with every rule of it changeable: ``rules``."""
