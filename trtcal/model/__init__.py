"""ONNX models: read and checked, what there is to calibrate in them, and how they run."""
