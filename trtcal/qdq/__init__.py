"""Scales become QuantizeLinear/DequantizeLinear pairs in a model, and back."""
