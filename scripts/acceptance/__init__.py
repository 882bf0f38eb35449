"""TensorRT's entropy calibration written out once more, and networks that a real TensorRT has calibrated.

``rules`` is the algorithm with every rule of it changeable; ``truth`` holds it to histograms whose scales TensorRT
wrote.
"""
