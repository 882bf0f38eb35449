"""How accurate a model is as INT8, how far it is from FP32, and which layers cost it."""
